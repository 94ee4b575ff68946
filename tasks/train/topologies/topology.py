"""What a topology does with an algorithm: it keeps the run's state, and says what one round of it is."""

from collections.abc import Generator
from typing import Protocol

from torch import Tensor

from tasks.train.work import Exchange, Setting, Uploads, Work
from tasks.tree import Tree


class Algorithm(Work, Protocol):
    """A method that can be trained with, as a topology sees it."""

    def server_init(self, params: Tree, setting: Setting) -> Tree: ...

    def request(self, server: Tree, clients: Tensor) -> Exchange: ...

    def round(self, server: Tree, clients: Tensor) -> Generator[Exchange, Uploads, Tree]: ...

    def server_update(self, server: Tree, uploads: Uploads) -> Tree: ...

    def personal(self, server: Tree, clients: Tensor, memory: Tree) -> Tree: ...


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
