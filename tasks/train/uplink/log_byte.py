"""One byte a number: its sign, and its magnitude on a logarithmic scale."""

import math
from typing import Literal

import torch
from pydantic import Field

from tasks import tree
from tasks.train.uplink.codec import Codec
from tasks.tree import Tree

STEPS = 63
"""Codes run from -STEPS to STEPS around a magnitude of 1; with the code for 0 they fill seven bits."""


class LogByte(Codec):
    """Rounds the logarithm of every magnitude to one of 127 steps; with the sign and a code for 0 that is one byte.

    code = round(levels * ln |x|) in -63..63,   D(E(x)) = sign(x) exp(code / levels)

    The relative error is at most exp(1 / (2 levels)) - 1, 6.5 % at 8 levels, for magnitudes of exp(-63 / levels) to
    exp(63 / levels); others are read as the nearest of these, and what is not finite as 0. Meant for uploads of a few
    numbers of unknown size, as those of `one_byte`.

    Source: Zelikman et al., "Just One Byte (per gradient)", arXiv:2306.10015, 2023, section 2; there the sign is a
    ninth bit.
    """

    name: Literal["log_byte"] = "log_byte"
    levels: float = Field(8.0, gt=0, description="steps for a factor of e")

    @property
    def packs(self) -> bool:
        return True

    def encode(self, values: Tree, key: torch.Tensor) -> tuple[Tree, Tree]:
        def coded(value: torch.Tensor) -> torch.Tensor:
            there = torch.isfinite(value) & (value != 0)
            logarithm = torch.log(torch.where(there, value.abs(), torch.ones_like(value)))
            step = (self.levels * logarithm).round().clamp(-STEPS, STEPS) + STEPS + 1
            return torch.where(there, step + 128 * (value < 0), 0).to(torch.uint8)

        return tree.map(coded, values), {}

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        def read(code: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            step = (code & 127).to(like.dtype)
            value = torch.exp((step - STEPS - 1) / self.levels) * (1 - 2 * (code >= 128).to(like.dtype))
            return torch.where(step > 0, value, torch.zeros_like(value))

        return tree.map(read, carried, like)

    @property
    def error(self) -> float:
        """The largest relative error within the range."""
        return math.expm1(0.5 / self.levels)
