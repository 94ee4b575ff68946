"""A plain stack of convolutions, as deep as one likes."""

import itertools
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks.config import Refused
from tasks.models.architectures import ACTIVATIONS, Activation, Architecture


class ConvNet(Architecture):
    """Convolutions one after another, each with a stride and an activation, then a linear layer; no pooling.

    What is lost on the way to the last layer is lost by striding and by depth alone, so that its depth, its strides and
    its activation can be varied one at a time.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["convnet"] = "convnet"
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (8, 16, 16), min_length=1, description="channels of each convolution"
    )
    strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 2), min_length=1, description="stride of each convolution"
    )
    kernel: int = Field(3, ge=1, le=11, description="side of the kernels, padded by half of it")
    hidden: int = Field(0, ge=0, description="width of a hidden linear layer; 0 for none")
    activation: Activation = Field("leaky_relu", description="what follows each convolution")

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.channels) != len(self.strides):
            raise ValueError(f"strides must be as many as channels, not {len(self.strides)} for {len(self.channels)}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(shape) != 3:
            allowed = f"needs images [channels, height, width], these are {shape}"
            raise Refused("params.yaml: model.name", self.name, allowed, "Use logistic or mlp for other samples")
        widths = itertools.pairwise((shape[0], *self.channels))
        layers: list[nn.Module] = []
        for (before, after), stride in zip(widths, self.strides, strict=True):
            layers += [nn.Conv2d(before, after, self.kernel, stride, self.kernel // 2), ACTIVATIONS[self.activation]()]
        features = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            size = features(torch.zeros(1, *shape)).shape[1]
        head = [nn.Linear(size, self.hidden), ACTIVATIONS[self.activation]()] if self.hidden else []
        return nn.Sequential(*features, *head, nn.Linear(self.hidden or size, classes))
