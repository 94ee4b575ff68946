"""Learnable tokens before every block."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.models.adapters.adapter import Adapter, replaced, with_head
from tasks.models.adapters.blocks import blocks


class Prompted(nn.Module):
    """``block`` with ``tokens`` learnable tokens before its input, which are taken out again after it."""

    def __init__(self, block: nn.Module, tokens: int, width: int, bound: float):
        super().__init__()
        self.block = block
        self.tokens = nn.Parameter(torch.empty(tokens, width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens.expand(len(x), *self.tokens.shape)
        return self.block(torch.cat([tokens, x], 1))[:, len(self.tokens) :]


class Prompt(Adapter):
    """Learnable tokens go before the input of every transformer block, and are dropped after it; the head trains too.

    With ``tokens`` = 0 this is `head`.

    Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, section 3.2 (VPT-deep), without dropout.
    """

    name: Literal["prompt"] = "prompt"
    tokens: int = Field(10, ge=0, description="tokens before every block")

    def fit(self, module: nn.Module) -> list[str]:
        found = blocks(module, self.name)
        width = found[0].narrow.out_features
        bound = math.sqrt(6 / (2 * width))
        names = [name for name, layer in module.named_modules() if any(layer is block for block in found)]
        if not self.tokens:
            return with_head(module, [])
        for name in names:
            replaced(module, name, Prompted(module.get_submodule(name), self.tokens, width, bound))
        return with_head(module, [f"{name}.tokens" for name in names])
