"""Label skew and size skew, each with a knob of its own."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.partition.splits.division import Division, shared_out


class DualDirichlet(Division):
    """Clients differ in how much they hold and in which classes they hold, by two Dirichlet draws.

    Shares q ~ Dir(size_alpha * 1) of all data, one for each client, and for every client c a mix of classes
    m_c ~ Dir(alpha * prior), where the prior is how common each class is. Class k is divided over the clients in
    proportion to q_c m_ck, so that every sample is used once. As alpha grows, every client receives its share of every
    class; as size_alpha grows as well, this is an even split.

    Source: Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a
    Computing Power Aware Scheduler", ICLR 2024, section 5 (alpha_1 there is ``size_alpha`` times the clients).
    """

    name: Literal["dual_dirichlet"] = "dual_dirichlet"
    size_alpha: float = Field(1.0, ge=1e-2, le=1e6, description="concentration of sizes: small is heterogeneous")
    alpha: float = Field(
        0.5, ge=1e-2, le=1e6, description="concentration of a client's classes, over all of them: small is few classes"
    )

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        _, label, counts = np.unique(y, return_inverse=True, return_counts=True)
        sizes = rng.dirichlet(np.full(clients, self.size_alpha))
        mixes = rng.dirichlet(self.alpha * counts / len(y), clients)
        owner = np.empty(len(y), np.int64)
        for k in range(len(counts)):
            members = rng.permutation(np.flatnonzero(label == k))
            portions = sizes * mixes[:, k]
            # Where nobody's mix has the class, or only in numbers too small to be told from 0, the sizes decide.
            owner[members] = shared_out(len(members), portions if portions.sum() > np.finfo(float).tiny else sizes)
        return owner
