"""What every adapter is, and those that add nothing to the network but choose among its parameters."""

from typing import Literal

from torch import nn

from tasks.config import Config, Refused

FIELD = "params.yaml: model.adapter"


class Adapter(Config):
    """Chooses the parameters of a network that clients train and send; the others stay as they are and never travel.

    Source of the frame: Sun et al., "Exploring Parameter-Efficient Fine-Tuning for Improving Communication Efficiency
    in Federated Learning" (FedPEFT), arXiv:2210.01708, 2022, section 3.
    """

    name: str

    def fit(self, module: nn.Module) -> list[str]:
        """Adds what the adapter needs to ``module``, and returns the names of the parameters that train."""
        raise NotImplementedError


class Full(Adapter):
    """Every parameter trains and travels."""

    name: Literal["full"] = "full"

    def fit(self, module: nn.Module) -> list[str]:
        return [name for name, _ in module.named_parameters()]


class Head(Adapter):
    """The last linear layer alone (linear probing)."""

    name: Literal["head"] = "head"

    def fit(self, module: nn.Module) -> list[str]:
        return with_head(module, [])


class Bias(Adapter):
    """All biases, those of the norms among them, and the last linear layer.

    Source: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models", ACL 2022.
    """

    name: Literal["bias"] = "bias"

    def fit(self, module: nn.Module) -> list[str]:
        # By the last word, which may be in_proj_bias, but not relative_position_bias_table.
        return with_head(module, [name for name, _ in module.named_parameters() if name.endswith("bias")])


def head(module: nn.Module) -> str:
    """The name of the last linear layer."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise Refused(FIELD, None, "the model has no linear layer to be its head", "Use full")
    return linear[-1]


def with_head(module: nn.Module, chosen: list[str]) -> list[str]:
    """``chosen`` and the parameters of the head, in the order of ``module``."""
    last = head(module)
    return [name for name, _ in module.named_parameters() if name in chosen or name.rpartition(".")[0] == last]


def replaced(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts ``layer`` in the place of the submodule ``name``."""
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
