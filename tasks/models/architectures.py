"""The networks that ship with Fedloom. Small, plain, without batch statistics."""

import importlib
import itertools
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tasks.config import Config, Refused
from tasks.models.adapters import AnyAdapter, Full
from tasks.models.blocks import Block
from tasks.models.start import Fresh, Start

Activation = Literal["relu", "tanh", "gelu", "sigmoid", "leaky_relu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
}


class Architecture(Config):
    """The base of all networks. ``reads`` is what samples it can be built for."""

    reads: ClassVar[tuple[str, ...]] = ("image", "table")
    weights: Literal["torch", "xavier"] = Field(
        "torch", description="first weights: as PyTorch draws a layer's, or Xavier-uniform with biases of 0"
    )
    start: Start = Field(Fresh(), description="what the weights are before the first round")
    adapter: AnyAdapter = Field(Full(), description="which parameters train and travel")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The module for samples of ``shape``, with one output a class."""
        raise NotImplementedError


class Logistic(Architecture):
    """Multinomial logistic regression: one linear layer on the flattened sample."""

    name: Literal["logistic"] = "logistic"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(_size(shape), classes))


class MLP(Architecture):
    """Fully connected layers with an activation between them."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((64,), description="width of each hidden layer")
    activation: Activation = Field("relu", description="what follows each layer but the last")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        widths = (_size(shape), *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


class CNN(Architecture):
    """Two convolutions, each with an activation and a pooling by two, then a linear layer (LeNet's shape)."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["cnn"] = "cnn"
    width: int = Field(16, ge=1, description="channels of the first convolution; the second has twice as many")
    kernel: int = Field(3, ge=1, le=11, description="side of the kernels, odd")
    hidden: int = Field(0, ge=0, description="width of a hidden linear layer; 0 for none")
    pool: Literal["max", "mean"] = Field("max", description="how two by two values become one")
    activation: Activation = Field("relu", description="what follows each layer but the last")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("must be odd, so that a convolution keeps the size of an image")
        return kernel

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, height, width = _image(self.name, shape)
        act, pool = ACTIVATIONS[self.activation], nn.MaxPool2d if self.pool == "max" else nn.AvgPool2d
        features = 2 * self.width * (height // 4) * (width // 4)
        if not features:
            raise Refused("params.yaml: model.name", self.name, f"needs images of at least 4 x 4, these are {shape}")
        head = [nn.Linear(features, self.hidden), act()] if self.hidden else []
        return nn.Sequential(
            nn.Conv2d(channels, self.width, self.kernel, padding=self.kernel // 2), act(), pool(2),
            nn.Conv2d(self.width, 2 * self.width, self.kernel, padding=self.kernel // 2), act(), pool(2),
            nn.Flatten(), *head, nn.Linear(self.hidden or features, classes),
        )  # fmt: skip


class Residual(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to the input (He et al., CVPR 2016; Wu and He, ECCV 2018)."""

    def __init__(self, before: int, after: int, stride: int, groups: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm_1 = nn.GroupNorm(groups, after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm_2 = nn.GroupNorm(groups, after)
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if (before, stride) != (after, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_2(self.second(torch.relu(self.norm_1(self.first(x)))))
        return torch.relu(y + self.skip(x))


class ResNet(Architecture):
    """A residual network for small images, with group norm in place of batch norm.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; group norm after Hsieh et
    al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020, section 5.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["resnet"] = "resnet"
    width: int = Field(16, ge=1, description="channels of the first group of blocks; each further group doubles them")
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 1, 1), min_length=1, description="residual blocks a group"
    )
    groups: int = Field(4, ge=1, description="groups of the group norm; divides the width")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.groups:
            raise ValueError(f"groups = {self.groups} must divide width = {self.width}")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, _, _ = _image(self.name, shape)
        layers = [
            nn.Conv2d(channels, self.width, 3, padding=1, bias=False),
            nn.GroupNorm(self.groups, self.width),
            nn.ReLU(),
        ]
        before = self.width
        for group, blocks in enumerate(self.blocks):
            for block in range(blocks):
                after, stride = self.width * 2**group, 2 if group and not block else 1
                layers.append(Residual(before, after, stride, self.groups))
                before = after
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class TransformerNetwork(nn.Module):
    """Token and position embeddings, causal blocks, and a linear read-out of the last position."""

    def __init__(self, positions: int, classes: int, width: int, heads: int, blocks: int):
        super().__init__()
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.read_out = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.read_out(self.norm(self.blocks(self.tokens(x) + self.positions))[:, -1])


class Transformer(Architecture):
    """A small causal transformer that predicts the token after a window of tokens.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    name: Literal["transformer"] = "transformer"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    width: int = Field(64, ge=1, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads; divides the width")
    blocks: int = Field(2, ge=1, description="transformer blocks")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(shape) != 1:
            mend = "Use it with partition.dataset.name: text"
            raise Refused("params.yaml: model.name", self.name, f"needs windows of tokens, these are {shape}", mend)
        if self.width % self.heads:
            raise Refused("params.yaml: model.heads", self.heads, f"must divide model.width = {self.width}")
        return TransformerNetwork(shape[0], classes, self.width, self.heads, self.blocks)


class Custom(Architecture):
    """Your own ``torch.nn.Module``, by import path.

    The class is called with ``options``; where it takes ``shape`` or ``classes``, it gets those of the data. Lazy
    layers get their sizes from a trial batch, whose outputs must be one number a class.
    """

    name: Literal["custom"] = "custom"
    reads: ClassVar[tuple[str, ...]] = ("image", "table", "text")
    path: str = Field(description="package.module:Class, importable from the project's folder")
    options: dict[str, Any] = Field({}, description="keyword arguments of the class")
    batch_norm: Literal["refuse", "group_norm"] = Field(
        "refuse", description="what to do about batch norm: refuse it, or put group norm in its place"
    )

    @field_validator("path")
    @classmethod
    def _importable(cls, path: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", path):
            raise ValueError("must be of the form package.module:Class, as in mymodels:Net of mymodels.py")
        return path

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        where, (module, cls) = "params.yaml: model.path", self.path.split(":")
        try:
            factory = getattr(importlib.import_module(module), cls)
        except (ImportError, AttributeError) as error:
            raise Refused(
                where, self.path, f"cannot be imported ({error})", "Give it as package.module:Class"
            ) from error
        try:
            network = factory(**_wanted(factory, shape=shape, classes=classes), **self.options)
        except TypeError as error:
            raise Refused("params.yaml: model.options", self.options, f"do not fit {cls} ({error})") from error
        if not isinstance(network, nn.Module):
            raise Refused(where, self.path, "must give a torch.nn.Module")
        network = _without_batch_norm(network) if self.batch_norm == "group_norm" else network
        found = _outputs(where, self.path, network, shape)
        if found != (2, classes):
            raise Refused(
                where,
                self.path,
                f"gives outputs of shape {list(found)} for a batch of 2, and the data have {classes} classes",
                f"It must give [batch, {classes}]; an argument `classes` of the class is told how many there are",
            )
        return network


@torch.no_grad()
def _outputs(where: str, path: str, network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what ``network`` gives for two samples of numbers or, where it takes none, of tokens."""
    failed: list[Exception] = []
    for kind in (torch.float32, torch.int64):
        try:
            return tuple(network(torch.zeros((2, *shape), dtype=kind)).shape)
        except Exception as error:  # whatever the user's own code may raise
            failed.append(error)
    raise Refused(where, path, f"fails on a batch of shape {[2, *shape]} ({failed[0]})") from failed[0]


def _wanted(factory: Callable, **offered: Any) -> dict[str, Any]:
    import inspect

    return {name: value for name, value in offered.items() if name in inspect.signature(factory).parameters}


def _without_batch_norm(module: nn.Module) -> nn.Module:
    """``module`` with every batch norm replaced by a group norm of as many channels, in at most 32 groups."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            channels = child.num_features
            groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
            setattr(module, name, nn.GroupNorm(groups, channels, eps=child.eps, affine=child.affine))
        else:
            _without_batch_norm(child)
    return module


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _image(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        mend = "Use logistic or mlp for samples of other shapes"
        raise Refused(
            "params.yaml: model.name", name, f"needs images [channels, height, width], these are {shape}", mend
        )
    return shape
