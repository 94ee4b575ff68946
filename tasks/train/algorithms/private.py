"""The base of the methods in which some parameters stay at home."""

from torch import Tensor

from tasks import tree
from tasks.config import Refused
from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import ClientState, Exchange, Setting, Uploads
from tasks.tree import Tree


class Private(FedAvg):
    """FedAvg on a part of the model; the rest is each client's own, trained with it and never sent.

    A client that was never called starts from the model as it was built. The server's copy of private tensors stays
    that, so the global model alone is of little use.
    """

    def at_home(self, model: Tree) -> list[str]:
        """The names of the parameters that stay home."""
        raise NotImplementedError

    def server_init(self, params: Tree, setting: Setting) -> Tree:
        home = self.at_home(params)
        if len(home) == len(params):
            where, allowed = "params.yaml: train.algorithm", "would keep the whole model at home"
            raise Refused(where, self.name, allowed, "Let something be shared")
        shared = {name: value for name, value in params.items() if name not in home}
        # The server's optimiser works on what is shared; the model has all, in the order of its layers.
        return tree.join(model=params) | super().server_init(shared, setting)

    def client_memory(self, shared: Tree) -> Tree:
        home = tree.part(shared, "home")
        return super().client_memory(shared | tree.join(model=home)) | tree.join(home=home)

    def client_init(self, shared: Tree, own: Tree, memory: Tree) -> ClientState:
        return super().client_init(shared | tree.join(model=tree.part(memory, "home")), own, memory)

    def client_final(self, shared: Tree, state: ClientState) -> tuple[Tree, Tree]:
        upload, memory = super().client_final(shared, state)
        home = tree.part(memory, "home")
        delta = {name: value for name, value in tree.part(upload, "delta").items() if name not in home}
        return tree.join(delta=delta), memory | tree.join(home={name: state.params[name] for name in home})

    def request(self, server: Tree, clients: Tensor) -> Exchange:
        shared, own = self.broadcast(server, clients)
        model = tree.part(server, "model")
        home = self.at_home(model)
        sent = {name: value for name, value in shared.items() if name.removeprefix("model/") not in home}
        # What they start from was in the first message of all, the model's description.
        return Exchange(self, sent, own, known=tree.join(home={name: model[name] for name in home}))

    def server_update(self, server: Tree, uploads: Uploads) -> Tree:
        home = {f"model/{name}" for name in self.at_home(tree.part(server, "model"))}
        return server | super().server_update({n: value for n, value in server.items() if n not in home}, uploads)

    @property
    def asynchronous(self) -> bool:
        return True

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree:
        model, home = tree.part(server, "model"), tree.part(memory, "home")
        return {name: home.get(name, value.expand(len(clients), *value.shape)) for name, value in model.items()}
