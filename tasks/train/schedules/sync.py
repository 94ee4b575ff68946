"""The synchronous schedule."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.config import Config
from tasks.train.schedules.schedule import Coordinator

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Sync(Config):
    """Every round waits for all of its cohort: the slowest client sets the pace.

    Source: McMahan et al., AISTATS 2017, algorithm 1.
    """

    name: Literal["sync"] = "sync"
    asynchronous: ClassVar[bool] = False

    def run(self, coordinator: Coordinator) -> Iterator[None]:
        while True:
            coordinator.advance(coordinator.round(coordinator.select()))
            yield

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        yield from ()
