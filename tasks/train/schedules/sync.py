"""The synchronous schedule."""

from collections.abc import Iterator
from typing import Literal

from tasks.config import Config
from tasks.train.schedules.schedule import Coordinator


class Sync(Config):
    """Every round waits for all of its cohort: the slowest client sets the pace.

    Source: McMahan et al., AISTATS 2017, algorithm 1.
    """

    name: Literal["sync"] = "sync"

    def run(self, coordinator: Coordinator) -> Iterator[None]:
        while True:
            coordinator.advance(coordinator.round(coordinator.select()))
            yield
