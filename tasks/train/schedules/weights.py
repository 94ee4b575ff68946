"""How uploads that arrive at different rates are weighed, and which objective a schedule really minimises.

A schedule in which client i takes part in a share f_i of the server's steps, with weight d_i, minimises in the end
sum_i d_i f_i L_i, up to a constant: the objective sum_i p_i L_i that was meant if d_i f_i = p_i for all clients.

Source: Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
Updates", JMLR 24, 2023.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from tasks.config import Config, one_of
from tasks.train.schedules.asynchronous import Asynchronous
from tasks.train.schedules.fleet import Fleet, Flight


class Rates(NamedTuple):
    """What a schedule knows of itself: ``gaps`` ``[clients]``, the server's steps from one upload of a client to its
    next in the mean, 1 / f_i; and the weights ``naive`` ``[clients]``, over ``over``, of one that asks for no rates."""

    gaps: Callable[[], np.ndarray]
    naive: Callable[[], tuple[np.ndarray, float]]


Weigh = Callable[[Sequence[Flight]], tuple[np.ndarray, float]]
"""From the uploads of a step to their weights, and what the sum is divided by."""


class Unbiased(Config):
    """Weights that make up for the rate at which a client's uploads arrive, known beforehand.

    d_i = p_i / f_i

    Source: Fraboni et al., JMLR 24, 2023, the time-based weights.
    """

    name: Literal["unbiased"] = "unbiased"

    def start(self, fleet: Fleet, rates: Rates) -> Weigh:
        weights, total = fleet.weights * rates.gaps(), fleet.weights.sum()
        return lambda flights: (weights[_clients(flights)], total)


class Measured(Config):
    """Weights that make up for the rate at which a client's uploads arrive, measured on the way.

    d_i = p_i g_i,   g_i <- (1 - momentum) g_i + momentum (steps of the server since the last upload of client i)

    For a server that does not know its devices, or devices whose pace varies. Where each client's uploads are equally
    many steps apart this is ``unbiased``.

    Source: Fraboni et al., JMLR 24, 2023, where f_i is the chance to take part; the mean gap of a renewal process is
    1 / f_i.
    """

    name: Literal["measured"] = "measured"
    momentum: float = Field(0.2, gt=0, le=1, description="weight of the newest gap")

    def start(self, fleet: Fleet, rates: Rates) -> Weigh:
        last, gaps = np.zeros(len(fleet.weights)), np.full(len(fleet.weights), np.nan)

        def weigh(flights: Sequence[Flight]) -> tuple[np.ndarray, float]:
            weights = []
            for client in _clients(flights):
                gap, last[client] = fleet.version + 1 - last[client], fleet.version + 1
                known = not np.isnan(gaps[client])
                gaps[client] = gaps[client] + self.momentum * (gap - gaps[client]) if known else gap
                weights.append(fleet.weights[client] * gaps[client])
            return np.array(weights), fleet.weights.sum()

        return weigh


class Identical(Config):
    """Weights that do not ask how often a client's uploads arrive: the objective leans towards the fast ones.

    fedfix: d_i = p_i / sum_j p_j f_j;   fedasync: d_i = 1;   fedbuff: d_i = 1 / size

    Source: Fraboni et al., JMLR 24, 2023, the identical weights.
    """

    name: Literal["identical"] = "identical"

    def start(self, fleet: Fleet, rates: Rates) -> Weigh:
        naive, over = rates.naive()
        return lambda flights: (naive[_clients(flights)], over)


class Shares(Config):
    """Every upload with its client's share in the objective, and nothing else: small steps of the server.

    d_i = p_i

    Source: Li et al., "FedCompass", ICLR 2024, the aggregators of its authors' code.
    """

    name: Literal["shares"] = "shares"

    def start(self, fleet: Fleet, rates: Rates) -> Weigh:
        total = fleet.weights.sum()
        return lambda flights: (fleet.weights[_clients(flights)], total)


Weighting = one_of(Unbiased, Measured, Identical, Shares)


class Weighted(Asynchronous):
    """A schedule that leaves its weights to a weighting."""

    weighting: Weighting = Field(Unbiased(), description="weights of the uploads in a step of the server (d_i)")

    def naive(self, fleet: Fleet) -> tuple[np.ndarray, float]:
        """The weights ``[clients]``, and what their sum is divided by, that ask for no rates."""
        raise NotImplementedError

    def gaps(self, fleet: Fleet) -> np.ndarray:
        """The server's steps from one upload of a client to its next, in the mean over the run, played beforehand."""
        plain, again, counts = (
            self.model_copy(update={"weighting": Shares()}),
            fleet.afresh(),
            np.zeros(len(fleet.weights)),
        )
        for step in again.run(plain.steps(again)):
            np.add.at(counts, _clients(step.flights), 1)
        return again.version / np.maximum(counts, 1)

    def weigh(self, fleet: Fleet) -> Weigh:
        return self.weighting.start(fleet, Rates(lambda: self.gaps(fleet), lambda: self.naive(fleet)))


def _clients(flights: Sequence[Flight]) -> np.ndarray:
    return np.array([flight.client for flight in flights], np.int64)
