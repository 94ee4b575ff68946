"""Networks, as plain torch modules, and the functional view of them that every stage shares."""

import torch

from tasks.config import one_of
from tasks.keys import derive
from tasks.models.adapters.adapter import head
from tasks.models.architectures import CNN, MLP, Custom, Logistic, ResNet, Transformer
from tasks.models.convnet import ConvNet
from tasks.models.hyper import Hyper
from tasks.models.network import Network, score
from tasks.models.prenorm import PreNorm
from tasks.models.start import Fresh, load
from tasks.models.vit import ViT
from tasks.tree import Tree

Model = one_of(Logistic, MLP, CNN, ConvNet, ResNet, PreNorm, ViT, Transformer, Hyper, Custom)

__all__ = ["Model", "Network", "build", "redrawn", "score"]


def build(model: Model, shape: tuple[int, ...], classes: int, seed: int) -> Network:
    """The network that ``params.yaml`` describes, for samples of ``shape``, with weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") % (1 << 63))
        module = model.build(tuple(shape), classes)
        if model.weights == "xavier":
            _xavier(module)
        recipe = model.model_dump_json(exclude={"start", "adapter"})
        if model.start.whole:
            trains = model.adapter.fit(module)
            return Network(module, trains, load(model.start, module, recipe, tuple(shape), None))
        anew = None if isinstance(model.start, Fresh) else head(module)
        loaded = load(model.start, module, recipe, tuple(shape), anew)
        return Network(module, model.adapter.fit(module), loaded)


def redrawn(model: Model, shape: tuple[int, ...], classes: int, seed: int, number: int) -> Tree:
    """Weights for the network of :func:`build` that are as random as its own, others for every ``number``."""
    return build(model, shape, classes, derive(seed, "redrawn", number)).parameters


def _xavier(module: torch.nn.Module) -> None:
    """Draws all weights anew: U(-a, a) with a = sqrt(6 / (fan in + fan out)), biases 0.

    Source: Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks", AISTATS
    2010, eq. (16).
    """
    for name, value in module.named_parameters():
        if value.dim() > 1:
            torch.nn.init.xavier_uniform_(value)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(value)
