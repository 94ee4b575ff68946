"""FedBuff: a step of the server for every so many uploads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from tasks.train.schedules.asynchronous import Staleness
from tasks.train.schedules.fleet import Fleet, Step
from tasks.train.schedules.weights import Weighted

if TYPE_CHECKING:
    from tasks.train.settings import TrainSettings


class FedBuff(Weighted):
    """Uploads wait in a buffer; when it is full, the server takes a step along all of them.

    x <- x + server_lr * sum over the buffer of d_i st(staleness) (w_i - x_i)
    d_i = p_i / f_i        for clients that take part in a share f_i of the steps, or 1 / size (``identical``)

    FedBuff as its authors have it is ``identical``, restarts ``immediately`` and has an ``exponent`` of 0.5. With a
    buffer of one upload it is ``fedasync``; with equally fast clients and a buffer for all, ``sync`` with all clients.
    The rates f_i of ``unbiased`` are counted on the clock beforehand, over the whole run.

    Sources: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1;
    Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
    JMLR 24, 2023 (weights, and clients that wait for the flush).
    """

    name: Literal["fedbuff"] = "fedbuff"
    size: int = Field(5, ge=1, description="uploads that fill the buffer (K, c)")
    restart: Literal["at_flush", "immediately"] = Field(
        "at_flush",
        description="when a client whose upload is in the buffer goes on: when the server has stepped, so that it is "
        "in the buffer once at most, or at once with the present model",
    )
    staleness: Staleness = Field(Staleness(), description="discount of old uploads, which the weights do not know of")

    def steps(self, fleet: Fleet) -> Iterator[Step]:
        weigh = self.weigh(fleet)
        at_once = self.restart == "immediately"
        fleet.send(fleet.select(fleet.cohort))
        while True:
            buffer = [fleet.land()]
            while len(buffer) < self.size:
                if at_once:
                    fleet.send(fleet.select(1))
                buffer.append(fleet.land())
            weights, over = weigh(buffer)
            fresh = [self.staleness.factor(fleet.version - flight.version) for flight in buffer]
            yield fleet.step(buffer, weights * fresh, over)
            fleet.send(fleet.select(1 if at_once else self.size))

    def naive(self, fleet: Fleet) -> tuple[np.ndarray, float]:
        return np.ones(len(fleet.weights)), float(self.size)

    def conflicts(self, train: "TrainSettings", clients: int) -> Iterator[str]:
        yield from super().conflicts(train, clients)
        if self.restart == "at_flush" and self.size > train.cohort:
            yield (
                f"train.schedule.size = {self.size}: must be at most train.cohort = {train.cohort}, the clients at "
                "work at a time, or the buffer never fills; or let restart be 'immediately'"
            )
