"""A small network of residual blocks, whose tensors can be made to change by very unlike amounts."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from tasks.models.architectures import Architecture


class Affine(nn.Linear):
    """A linear layer that stores weight / ``matrix`` and bias / ``vector``."""

    def __init__(self, before: int, after: int, matrix: float, vector: float):
        super().__init__(before, after)
        self.matrix, self.vector = matrix, vector
        with torch.no_grad():
            self.weight /= matrix
            self.bias /= vector

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.matrix * self.weight, self.vector * self.bias)


class Norm(nn.LayerNorm):
    """A layer norm that stores gain / ``vector`` and bias / ``vector``."""

    def __init__(self, width: int, vector: float):
        super().__init__(width)
        self.vector = vector
        with torch.no_grad():
            self.weight /= vector

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, self.vector * self.weight, self.vector * self.bias, self.eps)


class Block(nn.Module):
    """A norm and a network of two layers, added to their input."""

    def __init__(self, width: int, hidden: int, matrix: float, vector: float):
        super().__init__()
        self.norm = Norm(width, vector)
        self.wide, self.narrow = Affine(width, hidden, matrix, vector), Affine(hidden, width, matrix, vector)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(gelu(self.wide(self.norm(x))))


class PreNorm(Architecture):
    """The feed-forward half of a pre-norm transformer on flattened samples: linear, residual blocks, norm, linear.

    A matrix is stored as W / matrix_scale and a vector (bias, gain) as b / vector_scale, and multiplied by it when
    used. That changes no output of the fresh network, but what a step changes: stored matrices move by ``matrix_scale``
    and stored vectors by ``vector_scale`` times the gradient. So the tensors of a small network can be given changes as
    unlike as those of a large transformer. With both at 1 it is a plain network.

    Source: the blocks are those of Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020,
    figure 1b, without attention.
    """

    name: Literal["prenorm"] = "prenorm"
    width: int = Field(32, ge=1, description="width of the residual stream")
    hidden: int = Field(64, ge=1, description="width inside a block")
    blocks: int = Field(3, ge=1, description="residual blocks")
    matrix_scale: float = Field(1.0, gt=0, description="what stored matrices are multiplied by when used")
    vector_scale: float = Field(1.0, gt=0, description="what stored biases and gains are multiplied by when used")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        scales = self.matrix_scale, self.vector_scale
        return nn.Sequential(
            nn.Flatten(),
            Affine(int(torch.Size(shape).numel()), self.width, *scales),
            *(Block(self.width, self.hidden, *scales) for _ in range(self.blocks)),
            Norm(self.width, self.vector_scale),
            Affine(self.width, classes, *scales),
        )
