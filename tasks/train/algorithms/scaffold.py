"""SCAFFOLD: control variates against client drift."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.models import Network
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import ClientState, Setting, Uploads
from tasks.tree import Tree


class Scaffold(FedAvg):
    """Each local gradient is corrected by the difference between the server's and the client's control variate.

    client:  w   <- w - lr (g(w) - c_k + c)          K times
             c_k <- c_k - c + (x - w) / (K lr)        (option II)
    server:  x   <- x + server_lr * mean of (w_k - x)
             c   <- c + |cohort| / |clients| * mean of the changes of c_k

    The first round, in which all control variates are 0, is FedAvg's with the same weighting, to the last bit. The
    client variates stay home between rounds; their changes travel, so messages are twice as long.

    Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
    algorithm 1 with option II.
    """

    name: Literal["scaffold"] = "scaffold"
    weighting: Literal["samples", "uniform"] = Field("uniform", description="weight of a client in the mean; 1 / |S|")
    momentum: float = Field(
        0.0, ge=0, le=0, description="none: c_k of option II is the mean gradient of plain SGD only"
    )
    weight_decay: float = Field(0.0, ge=0, le=0, description="none, for the same reason")

    @property
    def accumulates(self) -> bool:
        return True

    def gradient(self, network: Network, state: ClientState, batch: Tree, key: Tensor) -> tuple[Tree, Tree]:
        gradient, metrics = super().gradient(network, state, batch, key)
        own, all_ = tree.part(state.memory, "control"), tree.part(state.shared, "control")
        return tree.map(lambda g, c_k, c: g - c_k + c, gradient, own, all_), metrics

    def client_memory(self, shared: Tree) -> Tree:
        return tree.join(control=tree.zeros_like(tree.part(shared, "model")))

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        delta = tree.subtract(state.params, state.start)
        drift = tree.scale(delta, -1.0 / (state.steps * shared["lr"]))
        change = tree.subtract(drift, tree.part(shared, "control"))
        own = tree.add(tree.part(state.memory, "control"), change)
        return tree.join(delta=delta, control=change), tree.join(control=own)

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        return super().server_init(params, setting) | tree.join(control=tree.zeros_like(params))

    def broadcast(self, server: Tree, clients: Tensor) -> tuple[Tree, Tree]:
        shared, own = super().broadcast(server, clients)
        return shared | tree.join(control=tree.part(server, "control")), own

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        share = uploads.count / int(server["run/clients"])
        control = tree.add(tree.part(server, "control"), tree.part(uploads.mean(), "control"), share)
        return super().server_update(server, uploads) | tree.join(control=control)
