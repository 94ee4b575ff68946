"""Asynchronous federated averaging: a step of the server for every upload."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from tasks.train.schedules.asynchronous import Staleness
from tasks.train.schedules.fleet import Fleet, Step
from tasks.train.schedules.weights import Weighted


class FedAsync(Weighted):
    """Every upload is a step of the server, and its client goes on from there at once.

    x <- x + server_lr * d_i st(staleness) (w_i - x_i),      x_i the model that client i was sent
    d_i = p_i tau_i sum_j 1 / tau_j                          for clients that take tau_i seconds

    With ``mixing`` it is w_i - x in place of w_i - x_i: the server mixes its model with the client's,
    x <- (1 - d) x + d w_i. That, with ``identical`` weights, ``alpha`` 0.6 and ``exponent`` 0.5, is FedAsync as its
    authors have it; as it stands here, with nothing discounted, it is the asynchronous FedAvg whose optimum is that of
    the objective. With one client all of these are plain local training. Uploads that arrive at the same time are taken
    in one by one, that of the lowest client first.

    Sources: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", OPT 2020, algorithm 1; Fraboni et al., "A
    General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates", JMLR 24, 2023
    (weights).
    """

    name: Literal["fedasync"] = "fedasync"
    staleness: Staleness = Field(Staleness(), description="discount of old uploads, which the weights do not know of")
    mixing: bool = Field(False, description="go towards the client's model, rather than along its change")

    def steps(self, fleet: Fleet) -> Iterator[Step]:
        weigh = self.weigh(fleet)
        fleet.send(fleet.select(fleet.cohort))
        while True:
            flight = fleet.land()
            weights, over = weigh([flight])
            fresh = self.staleness.factor(fleet.version - flight.version)
            yield fleet.step([flight], weights * fresh, over, self.mixing)
            fleet.send(fleet.select(1))

    def gaps(self, fleet: Fleet) -> np.ndarray:
        return fleet.usual * (1 / fleet.usual).sum() if fleet.everyone else super().gaps(fleet)

    def naive(self, fleet: Fleet) -> tuple[np.ndarray, float]:
        return np.ones(len(fleet.weights)), 1.0
