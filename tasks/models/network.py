"""A torch module seen as pure functions of its parameters: what a client's step differentiates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.config import Refused
from tasks.tree import Tree


class Network:
    """``module`` without state of its own: parameters come in as a :class:`~tasks.tree.Tree` at every call.

    Parameters
    ----------
    module : the network.
    trains : names of the parameters that come in; the others are frozen as they are. All, unless given.
    started : SHA-256 of the weights that it was started from, if they are not fresh ones.

    Raises
    ------
    Refused
        If the module cannot be federated as it is: running batch statistics, which are neither parameters nor safe to
        average over unlike clients, or dropout, whose masks come from a global generator.
    """

    def __init__(self, module: nn.Module, trains: Sequence[str] | None = None, started: str | None = None):
        layers = dict(module.named_modules())
        dropping = {name: layer for name, layer in layers.items() if getattr(layer, "p", 0)}
        _refuse(
            layers,
            nn.modules.batchnorm._BatchNorm,
            "keeps running statistics of its batches, which clients with unlike data cannot share",
            "Use GroupNorm, or `model: {name: custom, batch_norm: group_norm}`",
        )
        _refuse(
            dropping,
            nn.modules.dropout._DropoutNd,
            "draws its masks from a global generator, so a run could not be repeated",
            "Set p = 0",
        )
        self.module, self.started = module.train(), started
        self.trains = [name for name, _ in module.named_parameters()] if trains is None else list(trains)
        for name, value in module.named_parameters():
            value.requires_grad_(name in self.trains)
        # To look for shared weights takes longer than a small network, so it is done once.
        self.ties = len([*module.named_parameters()]) < len([*module.named_parameters(remove_duplicate=False)])

    @property
    def parameters(self) -> Tree:
        """A copy of the parameters that train, as the module was built with them."""
        values = dict(self.module.named_parameters())
        return {name: values[name].detach().clone() for name in self.trains}

    @property
    def frozen(self) -> Tree:
        """The parameters that do not train."""
        return {name: value.detach() for name, value in self.module.named_parameters() if name not in self.trains}

    def apply(self, params: Tree, x: Tensor) -> Tensor:
        """The outputs ``[batch, classes]`` for ``x`` ``[batch, *shape]``."""
        return functional_call(self.module, params, (x,), tie_weights=self.ties)

    def losses(self, params: Tree, x: Tensor, y: Tensor) -> Tensor:
        """The cross-entropy of each sample, in nats, ``[batch]``."""
        return nn.functional.cross_entropy(self.apply(params, x), y, reduction="none")


def _refuse(layers: dict[str, nn.Module], kind: type, why: str, mend: str) -> None:
    for name, layer in layers.items():
        if isinstance(layer, kind):
            raise Refused(
                "params.yaml: model", None, f"its layer {name or 'itself'}, a {type(layer).__name__}, {why}", mend
            )


@torch.no_grad()
def score(network: Network, params: Tree, x: Tensor, y: Tensor, batch: int = 2048) -> tuple[Tensor, Tensor]:
    """Loss and hit of every sample, two tensors ``[samples]``, computed ``batch`` samples at a time."""
    losses, right = [], []
    for start in range(0, len(x), batch):
        outputs = network.apply(params, x[start : start + batch])
        truth = y[start : start + batch]
        losses.append(nn.functional.cross_entropy(outputs, truth, reduction="none"))
        right.append((outputs.argmax(1) == truth).float())
    return torch.cat(losses), torch.cat(right)
