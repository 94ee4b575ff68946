"""Which parameters of a network train and travel. To add one: a file here, and its name in the union."""

from tasks.config import one_of
from tasks.models.adapters.adapter import Adapter, Bias, Full, Head
from tasks.models.adapters.bottleneck import Bottleneck
from tasks.models.adapters.lora import LoRA
from tasks.models.adapters.prompt import Prompt

AnyAdapter = one_of(Full, Head, Bias, Bottleneck, Prompt, LoRA)

__all__ = ["Adapter", "AnyAdapter", "Bias", "Bottleneck", "Full", "Head", "LoRA", "Prompt"]
