"""What a topology does with an algorithm: it keeps the run's state, and says what one round of it is."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from tasks.train.algorithms.fedavg import FedAvg
from tasks.train.work import Exchange, Setting, Uploads, Work
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings

SERVER_HOOKS = ("server_init", "broadcast", "request", "round", "server_update", "personal")


class Algorithm(Work, Protocol):
    """A method that can be trained with, as a topology sees it."""

    def server_init(self, params: Tree, setting: Setting) -> Tree: ...

    def request(self, server: Tree, clients: Tensor) -> Exchange: ...

    def round(self, server: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]: ...

    def server_update(self, server: Tree, uploads: Uploads) -> Tree: ...

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree: ...

    def diagnostics(self, server: Tree) -> dict[str, float]: ...


class Topology(Protocol):
    """Who talks to whom, and where the models are."""

    def init(self, algorithm: Algorithm, params: Tree, setting: Setting) -> Tree:
        """The state before the first round, one tree."""

    def round(self, algorithm: Algorithm, state: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]:
        """A round with ``clients``: yields requests to them, receives their answers, returns the next state."""

    def model(self, state: Tree) -> Tree:
        """The one model that stands for the run."""

    def models(self, algorithm: Algorithm, state: Tree, clients: Tensor, memory: Tree) -> Tree:
        """The own models of ``clients``, stacked; {} where all share the one model. ``memory`` is what they remember of
        the algorithm, stacked."""

    def diagnostics(self, algorithm: Algorithm, state: Tree) -> dict[str, float]:
        """What is to be told of the state beside how good the model is, by name, at every evaluation."""

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        """What in the rest of the ``train`` section it rules out, each problem with its path in `params.yaml`."""


def missing_server(algorithm: FedAvg, here: str) -> Iterator[str]:
    """Why ``algorithm`` cannot do without a server, where ``here`` leaves it none: its own does more than average."""
    if any(getattr(type(algorithm), hook) is not getattr(FedAvg, hook) for hook in SERVER_HOOKS):
        yield (
            f"train.algorithm.name = {algorithm.name!r}: its server does more than average, and with {here} there is "
            "none; use a method whose work is all on the clients, such as fedavg or fedprox"
        )
    elif algorithm.server != type(algorithm)().server:
        yield (
            f"train.algorithm.server.name = {algorithm.server.name!r}: takes a step of the server's, and with {here} "
            "there is none; leave it out"
        )
