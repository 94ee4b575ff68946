"""What a schedule may do with a run: it decides who works when, and when the server takes its steps."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class Coordinator(Protocol):
    """The run as a schedule sees it."""

    def select(self) -> np.ndarray:
        """The clients of the next round, by the configured sampling."""

    def round(self, clients: np.ndarray) -> np.ndarray:
        """Takes one round with ``clients``: all exchanges of the method, and the server's update.

        Returns the virtual seconds ``[clients]`` from dispatch to each client's last answer."""

    def advance(self, seconds: np.ndarray) -> None:
        """Moves the virtual clock by the longest of ``seconds``."""


class Schedule(Protocol):
    """Drives a run: each item of the iterator is one step of the server."""

    def run(self, coordinator: Coordinator) -> Iterator[None]: ...
