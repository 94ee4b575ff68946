"""FedPer: the last layers stay at home."""

from typing import Literal

from pydantic import Field

from tasks.train.algorithms.private import Private
from tasks.tree import Tree


class FedPer(Private):
    """Every client keeps the last layers of the model to itself and trains them with the rest, which FedAvg averages.

    With ``layers`` = 0 this is FedAvg, to the last bit. Private layers travel neither up nor down.

    Source: Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818, 2019, algorithm 1.
    """

    name: Literal["fedper"] = "fedper"
    layers: int = Field(1, ge=0, description="layers at the end of the model that stay home (K_P)")

    def at_home(self, model: Tree) -> list[str]:
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in model))
        kept = set(modules[len(modules) - self.layers :] if self.layers < len(modules) else modules)
        return [name for name in model if name.rpartition(".")[0] in kept]
