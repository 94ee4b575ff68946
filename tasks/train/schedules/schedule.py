"""What a schedule may do with a run: it decides who works when, and when the server takes its steps."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tasks.train.schedules.fleet import Fleet, Step

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Coordinator(Protocol):
    """The run as a schedule sees it."""

    rounds: int
    """Steps of the server so far."""

    def select(self) -> np.ndarray:
        """The clients of the next round, by the configured sampling."""

    def round(self, clients: np.ndarray) -> np.ndarray:
        """Takes one round with ``clients``: all exchanges of the method, and the server's update.

        Returns the virtual seconds ``[clients]`` from dispatch to each client's last answer."""

    def advance(self, seconds: np.ndarray) -> None:
        """Moves the virtual clock by the longest of ``seconds``."""

    def fleet(self) -> Fleet:
        """The clients at the start of the run, for schedules in which not all work at the same time."""

    def step(self, step: Step) -> None:
        """Takes the next step of the server: all that it takes in was sent in this step or in one before."""


class Schedule(Protocol):
    """Drives a run: each item of the iterator is one step of the server.

    ``asynchronous``: its steps are no rounds, and ``steps(fleet)`` gives them all beforehand."""

    asynchronous: bool

    def run(self, coordinator: Coordinator) -> Iterator[None]: ...

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        """What in the rest of the ``train`` section makes no sense under it, with its path in `params.yaml`."""
