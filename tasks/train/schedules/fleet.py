"""The clients on the virtual clock: who is at work since when and until when, whatever they learn meanwhile.

Messages are as long, and devices as fast, as is known when work is handed out. So what an asynchronous schedule does
follows from the parameters alone: it can be played through before the run, and again after the run was interrupted.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, Self

import numpy as np

DIGITS = 9
"""Decimals of a second that the clock has: what is due at the same time is so to the bit."""
SLACK = 1e-6
"""What a ratio of two times may miss a whole number by and still be taken for it."""


class Flight(NamedTuple):
    """A client at work, from the broadcast of a model to the arrival of an upload.

    ``number`` counts all flights of the run; ``turn`` those of the client, from 1; ``version`` is the number of steps
    that the server had taken; ``steps`` are the client's local steps, None for as many as the method says; it is
    ``sent`` and ``due`` at these seconds.
    """

    number: int
    client: int
    turn: int
    version: int
    steps: int | None
    sent: float
    due: float


class Step(NamedTuple):
    """One step of the server, from 1, along the sum of ``weights`` times uploads, divided by ``over``.

    ``sent`` are the flights that have left since the step before, ``flights`` those that it takes in. ``mixes``: it
    goes towards each client's model, rather than along the change that the client made to the model it was sent.
    """

    number: int
    seconds: float
    sent: tuple[Flight, ...]
    flights: tuple[Flight, ...]
    weights: np.ndarray
    over: float
    mixes: bool = False

    @property
    def staleness(self) -> np.ndarray:
        """Steps of the server between the broadcast and the arrival of each flight, int64 ``[flights]``."""
        return self.number - 1 - np.array([flight.version for flight in self.flights], np.int64)


class Pace(Protocol):
    """How long flights take."""

    def __call__(self, clients: np.ndarray, turns: np.ndarray, version: int, steps: Sequence[int | None]) -> np.ndarray:
        """Seconds of each flight ``[clients]``; turn 0 stands for a client's usual pace."""


class Fleet:
    """The clients and the clock.

    Parameters
    ----------
    weights : of the clients in the objective, times any constant, ``[clients]``: p_i in the papers.
    pace : how long flights take.
    cohort : clients at work at a time.
    rounds, seconds : the run ends with this step, or with the first one at these seconds or later.
    draw : ``draw(idle, count, number)`` picks ``count`` of the ``idle`` clients, for flights from ``number`` on.
    """

    def __init__(
        self,
        weights: np.ndarray,
        pace: Pace,
        cohort: int,
        rounds: int,
        seconds: float | None = None,
        draw: Callable[[np.ndarray, int, int], np.ndarray] = lambda idle, count, number: idle[:count],
    ):
        self.weights, self.pace, self.cohort, self.draw = weights, pace, cohort, draw
        self.rounds, self.seconds = rounds, seconds or math.inf
        self.now, self.version, self.launched = 0.0, 0, 0
        self.turns = np.zeros(len(weights), np.int64)
        self.busy = np.zeros(len(weights), bool)
        self._flying: list[tuple[float, int, Flight]] = []
        self._sent: list[Flight] = []

    def afresh(self) -> Self:
        """The same clients at the start of the run."""
        return type(self)(self.weights, self.pace, self.cohort, self.rounds, self.seconds, self.draw)

    @cached_property
    def usual(self) -> np.ndarray:
        """Seconds of each client's work at its usual pace ``[clients]``: tau in the papers."""
        everyone = np.arange(len(self.weights))
        return self.pace(everyone, np.zeros_like(everyone), self.rounds, [None] * len(everyone))

    @property
    def everyone(self) -> bool:
        """Whether all clients are at work all the time."""
        return self.cohort == len(self.weights)

    @property
    def due(self) -> float:
        """When the next upload arrives; infinite where nobody is at work."""
        return self._flying[0][0] if self._flying else math.inf

    def select(self, count: int) -> np.ndarray:
        """So many of the clients that are idle."""
        idle = np.flatnonzero(~self.busy)
        return idle if len(idle) == count else self.draw(idle, count, self.launched)

    def send(self, clients: Sequence[int] | np.ndarray, steps: Sequence[int | None] | None = None) -> list[Flight]:
        """Sends the model to idle ``clients``, with so many local ``steps`` to take."""
        clients, steps = np.asarray(clients, np.int64), steps or [None] * len(clients)
        if not len(clients):
            return []
        self.turns[clients] += 1
        self.busy[clients] = True
        seconds = self.pace(clients, self.turns[clients], self.version, steps)
        numbers, self.launched = itertools.count(self.launched), self.launched + len(clients)
        flights = [
            Flight(
                next(numbers),
                int(client),
                int(turn),
                self.version,
                count,
                self.now,
                round(self.now + float(taken), DIGITS),
            )
            for client, turn, count, taken in zip(clients, self.turns[clients], steps, seconds, strict=True)
        ]
        for flight in flights:
            heapq.heappush(self._flying, (flight.due, flight.client, flight))
        self._sent += flights
        return flights

    def land(self) -> Flight:
        """The next upload to arrive, of several at a time that of the lowest client; the clock goes on to it."""
        self.now, _, flight = heapq.heappop(self._flying)
        self.busy[flight.client] = False
        return flight

    def wait(self, until: float, slack: float = 0.0) -> list[Flight]:
        """All that arrives by then, give or take ``slack``; the clock goes on to ``until``."""
        landed = []
        while self.due <= until + slack:
            landed.append(self.land())
        self.now = round(float(until), DIGITS)
        return landed

    def step(self, flights: Sequence[Flight], weights: np.ndarray, over: float, mixes: bool = False) -> Step:
        """The server's next step, which takes in ``flights``."""
        self.version += 1
        sent, self._sent = tuple(self._sent), []
        return Step(self.version, self.now, sent, tuple(flights), np.asarray(weights, np.float64), over, mixes)

    def ends(self, step: Step) -> bool:
        """Whether ``step`` is the run's last."""
        return step.number >= self.rounds or step.seconds >= self.seconds

    def run(self, steps: Iterable[Step]) -> Iterator[Step]:
        """``steps`` up to the end of the run."""
        for step in steps:
            yield step
            if self.ends(step):
                return
