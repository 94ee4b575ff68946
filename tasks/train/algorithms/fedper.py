"""FedPer: the last layers stay at home."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.config import Refused
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import ClientState, Exchange, Setting, Uploads
from tasks.tree import Tree


class FedPer(FedAvg):
    """Every client keeps the last tensors of the model to itself and trains them with the rest, which FedAvg averages.

    With ``layers`` = 0 this is FedAvg, to the last bit. The private tensors neither travel up nor down; the server's
    copy of them stays what it was at the start.

    Source: Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818, 2019, algorithm 1.
    """

    name: Literal["fedper"] = "fedper"
    layers: int = Field(1, ge=0, description="layers at the end of the model that stay home (K_P)")

    def private(self, model: Tree) -> list[str]:
        """The names of the parameters that stay home: those of the last ``layers`` modules that have any."""
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in model))
        kept = set(modules[len(modules) - self.layers :])
        return [name for name in model if name.rpartition(".")[0] in kept]

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        if len(self.private(params)) == len(params):
            where, allowed = "params.yaml: train.algorithm.layers", "would keep the whole model at home"
            raise Refused(where, self.layers, allowed, "Use fewer, so that something is shared")
        return super().server_init(params, setting)

    def client_memory(self, shared: Tree) -> Tree:
        return tree.part(shared, "home")

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState:
        return super().client_init(shared | tree.join(model=memory), own, memory)

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        travels = [name for name in state.params if name not in state.memory]
        delta = {name: state.params[name] - state.start[name] for name in travels}
        return tree.join(delta=delta), {name: state.params[name] for name in state.memory}

    def request(self, server: Tree, clients: Tensor) -> Exchange:
        shared, own = self.broadcast(server, clients)
        model = tree.part(server, "model")
        home = self.private(model)
        sent = {name: value for name, value in shared.items() if name.removeprefix("model/") not in home}
        # What they start from was in the first message of all, the model's description.
        return Exchange(self, sent, own, known=tree.join(home={name: model[name] for name in home}))

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        home = {f"model/{name}" for name in self.private(tree.part(server, "model"))}
        return server | super().server_update({n: value for n, value in server.items() if n not in home}, uploads)

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree:
        return tree.repeat(tree.part(server, "model"), len(clients)) | memory
