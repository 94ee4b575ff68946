"""The star: a server in the middle."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from tasks import tree
from tasks.config import Config
from tasks.train.topologies.topology import Algorithm
from tasks.train.work import Exchange, Setting, Uploads
from tasks.tree import Tree

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Server(Config):
    """A server in the middle, which holds the model and talks to every client."""

    name: Literal["server"] = "server"

    def init(self, algorithm: Algorithm, params: Tree, setting: Setting) -> Tree:
        return algorithm.server_init(params, setting)

    def round(self, algorithm: Algorithm, state: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]:
        return algorithm.round(state, clients)

    def model(self, state: Tree) -> Tree:
        return tree.part(state, "model")

    def models(self, algorithm: Algorithm, state: Tree, clients: Tensor, memory: Tree) -> Tree:
        return algorithm.personal(state, clients, memory)

    def diagnostics(self, algorithm: Algorithm, state: Tree) -> dict[str, float]:
        return algorithm.diagnostics(state)

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        yield from ()
