"""FedProx: a proximal term against client drift."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.models import Network
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import ClientState
from tasks.tree import Tree


class FedProx(FedAvg):
    """FedAvg whose local loss also pulls the weights back towards the model that was broadcast.

    loss(w) = L(w; batch) + mu / 2 * ||w - x||^2

    With mu = 0 this is FedAvg, to the last bit.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. (2).
    """

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, ge=0, description="pull towards the broadcast model")

    def loss(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> Tensor:
        pull = 0.5 * self.mu * tree.square_distance(state.params, state.start)
        return super().loss(network, state, batch, key) + pull
