"""Networks, as plain torch modules, and the functional view of them that every stage shares."""

import torch

from tasks.config import one_of
from tasks.keys import derive
from tasks.models.architectures import CNN, MLP, Custom, Logistic, ResNet, Transformer
from tasks.models.convnet import ConvNet
from tasks.models.hyper import Hyper
from tasks.models.network import Network, score

Model = one_of(Logistic, MLP, CNN, ConvNet, ResNet, Transformer, Hyper, Custom)

__all__ = ["Model", "Network", "build", "score"]


def build(model: Model, shape: tuple[int, ...], classes: int, seed: int) -> Network:
    """The network that ``params.yaml`` describes, for samples of ``shape``, with weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights") % (1 << 63))
        return Network(model.build(tuple(shape), classes))
