"""The base of the schedules in which clients work at their own pace and the server does not wait for all of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.config import Config
from tasks.train.privacy.central import Central
from tasks.train.schedules.fleet import Fleet, Step
from tasks.train.schedules.schedule import Coordinator
from tasks.train.topologies import Server

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class Asynchronous(Config):
    """Clients work at their own pace, each from the model that it was last sent.

    A change counts from the model that was SENT, however old, and is added to the present one. All uploads of a step
    are changes against the same present model.
    """

    name: str
    asynchronous: ClassVar[bool] = True

    def steps(self, fleet: Fleet) -> Iterator[Step]:
        """The steps of the server over ``fleet``, without end: a function of the fleet's pace alone."""
        raise NotImplementedError

    def run(self, coordinator: Coordinator) -> Iterator[None]:
        """Takes the steps that are left: of a run that was interrupted, the first are played through on the clock."""
        for step in self.steps(coordinator.fleet()):
            if step.number > coordinator.rounds:
                coordinator.step(step)
                yield

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        """What in the rest of the ``train`` section makes no sense under it, with its path in `params.yaml`."""
        here = f"with train.schedule.name = {self.name!r}"
        if not isinstance(train.topology, Server):
            yield f"train.topology.name = {train.topology.name!r}: must be 'server' {here}: it says when a server steps"
        if not train.algorithm.asynchronous:
            yield (
                f"train.algorithm.name = {train.algorithm.name!r}: its server needs the answers of a whole round, and "
                f"{here} there are none; use a method whose server takes any sum of changes, such as 'fedavg'"
            )
        if train.sampling.poisson:
            yield (
                f"train.sampling.name = {train.sampling.name!r}: tosses coins for a round, and {here} there is none; "
                "use 'uniform'"
            )
        if train.privacy.init():
            yield (
                f"train.privacy.name = {train.privacy.name!r}: its clip norm moves, and {here} messages arrive that "
                "were clipped to an older one, which the noise would not cover; use 'gaussian' or 'local'"
            )
        if isinstance(train.privacy, Central) and train.privacy.extrapolate_to:
            yield (
                f"train.privacy.extrapolate_to: must be null {here}, as a larger population would be called in another "
                "way than by drawing cohorts of it"
            )


class Staleness(Config):
    """How the weight of an upload falls with its staleness, the server's steps since its client was sent the model.

    factor(s) = alpha (1 + s)^(-exponent)

    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", OPT 2020, section 5.2 (polynomial).
    """

    alpha: float = Field(1.0, gt=0, description="weight of an upload that is not stale (alpha)")
    exponent: float = Field(0.0, ge=0, description="how fast the weight falls with staleness; 0: not at all (a)")

    def factor(self, staleness: int) -> float:
        return self.alpha * (1 + staleness) ** -self.exponent
