"""Low-rank changes of the linear layers."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.config import Refused
from tasks.models.adapters.adapter import FIELD, Adapter, head, replaced, with_head


class LowRank(nn.Module):
    """``linear`` with (alpha / rank) B A added to its weight; B is 0 at the start."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / rank**0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.a.T) @ self.b.T


class LoRA(Adapter):
    """Each linear layer but the head is W + (alpha / rank) B A, with W frozen; the head trains as a whole.

    At the start B = 0, so the network is what it was.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, eq. (3).
    """

    name: Literal["lora"] = "lora"
    rank: int = Field(4, ge=1, description="rank of the change (r)")
    alpha: float = Field(8.0, gt=0, description="scale of the change, before it is divided by the rank")

    def fit(self, module: nn.Module) -> list[str]:
        last = head(module)
        layers = [n for n, layer in module.named_modules() if isinstance(layer, nn.Linear) and n != last]
        if not layers:
            raise Refused(FIELD, self.name, "the model has no linear layer beside its head", "Use bias or head")
        for name in layers:
            replaced(module, name, LowRank(module.get_submodule(name), self.rank, self.alpha))
        return with_head(module, [f"{name}.{factor}" for name in layers for factor in ("a", "b")])
