"""FedFix: the server steps by the clock."""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from tasks.train.schedules.fleet import SLACK, Fleet, Step
from tasks.train.schedules.weights import Weighted


class FedFix(Weighted):
    """The server takes a step every so many seconds, along whatever has arrived; who is not ready works on.

    x <- x + server_lr * sum over the arrived of d_i (w_i - x_i),   x_i the model that client i was sent
    d_i = p_i ceil(tau_i / period)        for clients that take tau_i seconds

    The weights of a step do not add up to 1, except in the mean over steps; to scale them so would favour fast clients
    again. With a period of the slowest client's time this is the synchronous schedule with all clients, to the last
    bit. A period in which nobody is ready is a step too, which changes nothing.

    Source: Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates", JMLR 24, 2023, FedFix.
    """

    name: Literal["fedfix"] = "fedfix"
    period: float = Field(0.5, gt=0, description="time between two steps, the slowest client's being 1 (delta t)")

    def steps(self, fleet: Fleet) -> Iterator[Step]:
        period, weigh = self.period * fleet.usual.max(), self.weigh(fleet)
        fleet.send(fleet.select(fleet.cohort))
        for n in itertools.count(1):
            landed = fleet.wait(n * period, SLACK * period)
            yield fleet.step(landed, *weigh(landed))
            fleet.send(fleet.select(len(landed)))

    def gaps(self, fleet: Fleet) -> np.ndarray:
        periods = np.ceil(fleet.usual / (self.period * fleet.usual.max()) - SLACK)
        return periods if fleet.everyone else super().gaps(fleet)

    def naive(self, fleet: Fleet) -> tuple[np.ndarray, float]:
        return fleet.weights, float((fleet.weights / self.gaps(fleet)).sum())
