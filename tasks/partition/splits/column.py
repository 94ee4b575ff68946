"""Clients that the data bring along."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.splits.division import FIELD, Division


class Column(Division):
    """The samples that share a value of a column belong together: a speaker, a hospital, an occupation, a label.

    ``by: label`` takes the labels. With as many clients as values, or with ``clients: null``, each value is a client.
    With fewer clients, whole groups are merged: from the largest down they are dealt to clients 0, 1, ..., and back
    again, which keeps the sizes alike. More clients than values are refused.
    """

    name: Literal["column"] = "column"
    by: str = Field("label", description="the column; `label`, or one that the dataset has")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        _, group, sizes = np.unique(self._values(y, columns), return_inverse=True, return_counts=True)
        if clients > len(sizes):
            problem = f"column {self.by!r} has {len(sizes)} values, so at most {len(sizes)} clients"
            raise Refused(
                "params.yaml: partition.clients", clients, problem, f"Set it to {len(sizes)} for one client a value"
            )
        if clients == len(sizes):
            return group.reshape(-1)
        turn, place = np.divmod(np.arange(len(sizes)), clients)
        client = np.empty(len(sizes), np.int64)
        client[np.argsort(-sizes, kind="stable")] = np.where(turn % 2 == 0, place, clients - 1 - place)
        return client[group.reshape(-1)]

    def natural(self, y: np.ndarray, columns: dict[str, np.ndarray]) -> int:
        return len(np.unique(self._values(y, columns)))

    def _values(self, y: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
        columns = {"label": y, **columns}
        if self.by not in columns:
            raise Refused(f"{FIELD}.by", self.by, f"is no column of the dataset: it has {', '.join(columns)}")
        return columns[self.by]
