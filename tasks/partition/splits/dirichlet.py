"""Label skew with one knob."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.partition.splits.division import Division, shared_out


class Dirichlet(Division):
    """Every class is divided over the clients in proportions drawn from a Dirichlet distribution.

    p_k ~ Dir(alpha * 1) for each class k, and client c receives the share p_kc of class k. As alpha grows, every client
    receives the same share of every class; as alpha falls to 0, every class goes to one client.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.3, ge=1e-3, le=1e6, description="concentration: small is heterogeneous")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        owner = np.empty(len(y), np.int64)
        for label in np.unique(y):
            members = rng.permutation(np.flatnonzero(y == label))
            owner[members] = shared_out(len(members), rng.dirichlet(np.full(clients, self.alpha)))
        return owner
