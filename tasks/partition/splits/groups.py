"""Groups of clients that hold the same classes."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.splits.division import FIELD, Division, by_label, dealt


class Groups(Division):
    """Clients come in groups; a group holds some of the classes, and beside them everybody has an even share of all.

    Client i is in group i mod G. Of every class the part ``shared`` is divided evenly over all clients, the rest evenly
    over the clients of the groups that hold it; a class that no group holds is divided over all. With ``shared`` = 1
    this is ``iid`` with equal label histograms.

    Source: Guo et al., "A New Federated Learning Framework Against Gradient Inversion Attacks", AAAI 2025, section 5.1
    (five overlapping groups of three classes, 20 % shared), after Huang et al., "Personalized Cross-Silo Federated
    Learning on Non-IID Data", AAAI 2021, section 5.
    """

    name: Literal["groups"] = "groups"
    groups: tuple[tuple[int, ...], ...] = Field(
        ((0, 1, 2), (2, 3, 4), (4, 5, 6), (6, 7, 8), (8, 9, 0)),
        min_length=1,
        description="class ids that each group holds",
    )
    shared: float = Field(0.2, ge=0, le=1, description="part of every class that is divided over all clients")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        classes, counts = np.unique(y, return_counts=True)
        if clients < len(self.groups):
            raise Refused(f"{FIELD}.groups", None, f"{len(self.groups)} groups need as many clients, not {clients}")
        for label in {label for group in self.groups for label in group} - set(classes.tolist()):
            raise Refused(f"{FIELD}.groups", label, f"the data have no such class (they have {classes.tolist()})")
        group = np.arange(clients) % len(self.groups)
        order, owner = by_label(y, rng), np.empty(len(y), np.int64)
        for label, members in zip(classes, np.split(order, np.cumsum(counts)[:-1]), strict=True):
            holders = np.flatnonzero([label in self.groups[g] for g in group])
            even = len(members) if not len(holders) else round(self.shared * len(members))
            owner[members[:even]] = dealt(np.arange(clients), even, rng)
            owner[members[even:]] = dealt(holders, len(members) - even, rng)
        return owner
