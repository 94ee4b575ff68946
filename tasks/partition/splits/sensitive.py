"""Clients that differ in a sensitive attribute, in its tie to the label, or in neither."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.config import Refused
from tasks.partition.splits.division import FIELD, Division, dealt


class Sensitive(Division):
    """Two halves of clients that an attribute Z of two values, or its agreement with the label Y, tells apart.

    even:       Z and Y are spread alike over all clients
    attribute:  the part ``alpha`` of the samples with Z = z is in half z
    agreement:  the part ``alpha`` of the samples with Z = Y is in half 0, and of those with Z != Y in half 1

    Values and labels count in their order, and a half's samples of every (Z, Y) are dealt evenly to its clients. Then
    the part ``swap`` of the smaller half changes places with as many samples of the other, so that nowhere a group is
    missing. With ``alpha`` = 1/2 and an even number of clients all three are the same, up to rounding.

    Source: Hamman and Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
    Information Decomposition", ICLR 2024 (its three scenarios).
    """

    name: Literal["sensitive"] = "sensitive"
    attribute: str = Field("sex", description="a column of the dataset with two values")
    scenario: Literal["even", "attribute", "agreement"] = Field("even", description="what tells the halves apart")
    alpha: float = Field(0.9, ge=0, le=1, description="part of the samples that is in the half where it belongs")
    swap: float = Field(0.01, ge=0, le=1, description="part of the smaller half that is exchanged at the end")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        if self.attribute not in columns:
            raise Refused(
                f"{FIELD}.attribute", self.attribute, f"is no column of the dataset: it has {', '.join(columns)}"
            )
        if clients < 2:
            raise Refused("params.yaml: partition.clients", clients, "two halves need two clients at least")
        z = self._sides(columns[self.attribute], f"column {self.attribute!r}")
        cells, cell = np.unique(np.stack([z, y]), axis=1, return_inverse=True)
        own = z ^ self._sides(y, "the label") if self.scenario == "agreement" else z
        halves, owner = np.array_split(np.arange(clients), 2), np.empty(len(y), np.int64)
        for c in range(cells.shape[1]):
            members = rng.permutation(np.flatnonzero(cell.reshape(-1) == c))
            if self.scenario == "even":
                owner[members] = dealt(np.arange(clients), len(members), rng)
                continue
            side, stays = own[members[0]], round(self.alpha * len(members))
            owner[members[:stays]] = dealt(halves[side], stays, rng)
            owner[members[stays:]] = dealt(halves[1 - side], len(members) - stays, rng)
        return self._swapped(owner, len(halves[0]), rng)

    def _sides(self, values: np.ndarray, what: str) -> np.ndarray:
        kinds, code = np.unique(values, return_inverse=True)
        if len(kinds) > 2:
            problem = f"needs two values of {what}, which has {len(kinds)}"
            raise Refused(f"{FIELD}.scenario", self.scenario, problem)
        return code.reshape(-1)

    def _swapped(self, owner: np.ndarray, middle: int, rng: np.random.Generator) -> np.ndarray:
        """The owners after as many samples of either half of the clients have changed places, pair by pair."""
        left, right = (rng.permutation(np.flatnonzero(part)) for part in (owner < middle, owner >= middle))
        count = round(self.swap * min(len(left), len(right)))
        swapped = owner.copy()
        swapped[left[:count]], swapped[right[:count]] = owner[right[:count]], owner[left[:count]]
        return swapped
