"""The transformer blocks of a network, for the adapters that hook into them."""

from torch import nn

from tasks.config import Refused
from tasks.models.adapters.adapter import FIELD
from tasks.models.blocks import Block


def blocks(module: nn.Module, adapter: str) -> list[Block]:
    """Raises ``Refused`` where there are none."""
    found = [layer for layer in module.modules() if isinstance(layer, Block)]
    if not found:
        raise Refused(FIELD, adapter, "the model has no transformer blocks", "Use bias, lora or head, or another model")
    return found
