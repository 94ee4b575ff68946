"""A small vision transformer."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.config import Refused
from tasks.models.architectures import Architecture
from tasks.models.blocks import Block


class VisionNetwork(nn.Module):
    """Patches as tokens, a class token before them, blocks, and a linear read-out of the class token."""

    def __init__(self, shape: tuple[int, int, int], classes: int, patch: int, width: int, heads: int, blocks: int):
        super().__init__()
        channels, height, across = shape
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.token = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + (height // patch) * (across // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads, ratio=2, causal=False) for _ in range(blocks)))
        self.norm, self.read_out = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        # [batch, channels, height, width] -> [batch, patches, channels * patch * patch]
        rows = x.unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        patches = rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        tokens = torch.cat([self.token.expand(len(x), 1, -1), self.embed(patches)], 1) + self.positions
        return self.read_out(self.norm(self.blocks(tokens)[:, 0]))


class ViT(Architecture):
    """A small vision transformer, with hidden layers twice as wide as its stream.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["vit"] = "vit"
    patch: int = Field(7, ge=1, description="side of a patch; divides the sides of the images")
    width: int = Field(64, ge=1, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads; divides the width")
    blocks: int = Field(4, ge=1, description="transformer blocks")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(shape) != 3:
            allowed = f"needs images [channels, height, width], these are {shape}"
            raise Refused("params.yaml: model.name", self.name, allowed, "Use logistic or mlp for other samples")
        if shape[1] % self.patch or shape[2] % self.patch:
            raise Refused("params.yaml: model.patch", self.patch, f"must divide the sides of the images, {shape[1:]}")
        if self.width % self.heads:
            raise Refused("params.yaml: model.heads", self.heads, f"must divide model.width = {self.width}")
        return VisionNetwork(shape, classes, self.patch, self.width, self.heads, self.blocks)
