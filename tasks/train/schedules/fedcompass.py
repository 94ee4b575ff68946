"""FedCompass: as many local steps as make clients arrive together."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from tasks.train.schedules.asynchronous import Asynchronous, Staleness
from tasks.train.schedules.fleet import SLACK, Fleet, Flight, Step

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


@dataclass
class Group:
    """Clients that shall arrive together: when they are ``expected``, and the ``latest`` moment that is on time.

    ``out`` are those that are still at work, ``arrived`` the uploads of those that wait for the others."""

    expected: float
    latest: float
    out: list[int] = field(default_factory=list)
    arrived: list[Flight] = field(default_factory=list)

    @property
    def members(self) -> list[int]:
        return self.out + [flight.client for flight in self.arrived]


class FedCompass(Asynchronous):
    """The server measures how fast clients are, and gives each as many local steps as let a group arrive together.

    x <- x + server_lr * sum over the group, and over the late since the last step, of p_i st(staleness) (w_i - x_i)
    st(s) = alpha (1 + s)^(-exponent)

    A client's first upload is a step by itself and tells its pace; from then on it joins the group for which it can
    take the most steps, between ``min_steps`` and ``max_steps``, or opens one: to finish with the next work of another
    group's fastest, or with ``max_steps``. Who arrives before the others waits for them, until the group's latest
    moment. Who arrives after it goes on at once with the model as it is, and counts in whichever group is next. Uploads
    that are late when the run ends are not taken in. Of the local method, `epochs` and `steps` do not count. With
    equally fast clients this becomes the synchronous schedule with all clients, ``max_steps`` local steps and a server
    rate of ``alpha``.

    Source: Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a
    Computing Power Aware Scheduler", ICLR 2024, algorithms 1 and 2. Old uploads weigh LESS, as its text has it; its
    code takes the exponent with the other sign.
    """

    name: Literal["fedcompass"] = "fedcompass"
    max_steps: int = Field(100, ge=1, description="most local steps that are assigned (Q_max)")
    min_steps: int = Field(
        20, ge=1, description="fewest local steps that are assigned (Q_min); max_steps: no adaptation"
    )
    latest_factor: float = Field(1.5, ge=1, description="how much later than expected is still on time (lambda)")
    speed_momentum: float = Field(0.9, gt=0, le=1, description="weight of the newest measurement of a client's pace")
    staleness: Staleness = Field(Staleness(alpha=0.9, exponent=0.5), description="weight of an upload, by its age")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} must be at most max_steps = {self.max_steps}")
        return self

    def steps(self, fleet: Fleet) -> Iterator[Step]:
        return Compass(self, fleet).steps()

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        yield from super().conflicts(train, clients)
        if train.cohort != clients:
            yield (
                f"train.cohort = {train.cohort}: must be partition.clients = {clients} with train.schedule.name = "
                f"{self.name!r}, which plans the work of every client from its pace"
            )
        if self.min_steps <= (idle := train.algorithm.idle_steps):
            yield (
                f"train.schedule.min_steps = {self.min_steps}: must be above {idle} with train.algorithm.name = "
                f"{train.algorithm.name!r}, whose first {idle} local steps change nothing of what is sent"
            )


class Compass:
    """The server's book: how fast clients are, who is in which group, and what came late."""

    def __init__(self, rules: FedCompass, fleet: Fleet):
        self.rules, self.fleet = rules, fleet
        self.pace: dict[int, float] = {}
        self.groups: dict[int, Group] = {}
        self.of: dict[int, int] = {}
        self.late: list[Flight] = []
        self.names = itertools.count()

    def steps(self) -> Iterator[Step]:
        fleet, most = self.fleet, self.rules.max_steps
        everyone = fleet.select(fleet.cohort)
        fleet.send(everyone, [most] * len(everyone))
        while True:
            # What arrives at a group's latest moment is on time, so the timer comes second.
            timer, closing = min(((group.latest, name) for name, group in self.open()), default=(math.inf, -1))
            if fleet.due > timer + SLACK:
                fleet.wait(max(timer, fleet.now))
                yield from self.aggregate(closing)
                continue
            flight = fleet.land()
            first = self.measure(flight)
            if first:
                yield self.step([flight])
                self.assign(flight.client)
                continue
            name = self.of[flight.client]
            group = self.groups[name]
            group.out.remove(flight.client)
            if fleet.now > group.latest + SLACK:
                self.late.append(flight)
                if not group.out:
                    del self.groups[name]
                self.assign(flight.client)
            else:
                group.arrived.append(flight)
                if not group.out:
                    yield from self.aggregate(name)

    def open(self) -> Iterator[tuple[int, Group]]:
        """The groups that have not been aggregated; of the others there are members left, all of them late."""
        return ((name, group) for name, group in self.groups.items() if group.latest > 0)

    def measure(self, flight: Flight) -> bool:
        """Notes the pace of a client, and whether that is the first time."""
        known, now = self.pace.get(flight.client), (flight.due - flight.sent) / flight.steps
        self.pace[flight.client] = now if known is None else known + self.rules.speed_momentum * (now - known)
        return known is None

    def aggregate(self, name: int) -> Iterator[Step]:
        """Takes in what has arrived of a group, and all that was late; its clients go on, the fastest first."""
        group = self.groups[name]
        arrived, group.arrived = group.arrived, []
        group.expected = group.latest = 0.0
        if arrived or self.late:
            late, self.late = self.late, []
            yield self.step([*late, *arrived])
        for flight in sorted(arrived, key=lambda flight: self.pace[flight.client]):
            self.assign(flight.client)
        if not group.out:
            del self.groups[name]

    def step(self, flights: list[Flight]) -> Step:
        version, weights = self.fleet.version, self.fleet.weights
        given = [weights[f.client] * self.rules.staleness.factor(version - f.version) for f in flights]
        return self.fleet.step(flights, given, float(weights.sum()))

    def assign(self, client: int) -> None:
        """Sends the model to a client, to take part in a group."""
        if not self.join(client):
            self.create(client)

    def join(self, client: int) -> bool:
        """Adds the client to the group for which it can take the most steps, if there is any."""
        chosen, steps = None, 0
        for name, group in self.open():
            possible = self.possible(client, group.expected)
            if self.rules.min_steps <= possible <= self.rules.max_steps and possible >= steps:
                chosen, steps = name, possible
        if chosen is not None:
            self.enter(client, chosen, steps)
        return chosen is not None

    def create(self, client: int) -> None:
        """Opens a group that shall arrive with another group's fastest client, when that comes back once more."""
        most, steps = self.rules.max_steps, -1
        for _, group in self.open():
            if group.latest > self.fleet.now:
                fastest = min(self.pace[member] for member in group.members)
                possible = self.possible(client, group.latest + fastest * most)
                steps = max(steps, possible) if possible <= most else steps
        steps = most if steps < 0 else max(steps, self.rules.min_steps)
        name, duration = next(self.names), steps * self.pace[client]
        self.groups[name] = Group(self.fleet.now + duration, self.fleet.now + self.rules.latest_factor * duration)
        self.enter(client, name, steps)

    def enter(self, client: int, name: int, steps: int) -> None:
        self.groups[name].out.append(client)
        self.of[client] = name
        self.fleet.send([client], [steps])

    def possible(self, client: int, until: float) -> int:
        """Local steps that a client can take by then."""
        return math.floor((until - self.fleet.now) / self.pace[client] + SLACK)
