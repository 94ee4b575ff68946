"""A fixed number of classes a client."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.splits.division import FIELD, Division, by_label

CELLS = 1 << 22
"""Numbers drawn at a time while the clients' classes are chosen."""


class Classes(Division):
    """Every client holds ``classes_per_client`` classes, and each class is divided equally among its holders.

    With all classes this is ``iid`` with exactly equal label histograms. Where a class has fewer samples than holders,
    some of them get none of it; ``partition.min_size`` can then bring a client samples of another class.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, section IV-A
    (#C=k).
    """

    name: Literal["classes"] = "classes"
    classes_per_client: int = Field(2, ge=1, le=100_000, description="classes that every client holds")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        _, starts, counts = np.unique(np.sort(y), return_index=True, return_counts=True)
        classes = len(counts)
        if self.classes_per_client > classes:
            raise Refused(f"{FIELD}.classes_per_client", self.classes_per_client, f"the data have {classes} classes")
        if self.classes_per_client * clients < classes:
            problem = f"with {clients} clients some of the {classes} classes would belong to nobody"
            mend = f"Use {-(-classes // clients)} or more, or raise partition.clients"
            raise Refused(f"{FIELD}.classes_per_client", self.classes_per_client, problem, mend)
        held = self._held(clients, classes, rng)
        order = by_label(y, rng)
        owner = np.empty(len(y), np.int64)
        pairs = np.argsort(held.reshape(-1), kind="stable")
        holders = np.bincount(held.reshape(-1), minlength=classes)
        for start, count, first, size in zip(starts, counts, np.cumsum(holders) - holders, holders, strict=True):
            clients_of_class = rng.permutation(pairs[first : first + size] // self.classes_per_client)
            owner[order[start : start + count]] = clients_of_class[np.arange(count) * size // count]
        return owner

    def _held(self, clients: int, classes: int, rng: np.random.Generator) -> np.ndarray:
        """Distinct classes for every client, every class held by someone: int64 [clients, classes_per_client]."""
        names = rng.permutation(classes)
        rows = max(CELLS // classes, 1)
        held = np.empty((clients, self.classes_per_client), np.int64)
        for start in range(0, clients, rows):
            client = np.arange(start, min(start + rows, clients))[:, None]
            urgency = rng.random((len(client), classes))
            # Dealt in turn, each class is certain of a holder: these pairs come before all that are drawn.
            urgency[(client - np.arange(classes)) % min(clients, classes) == 0] -= 1.0
            chosen = np.argpartition(urgency, self.classes_per_client - 1, axis=1)[:, : self.classes_per_client]
            held[start : start + len(client)] = names[chosen]
        return held
