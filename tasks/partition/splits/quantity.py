"""Few clients with much, many with little."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.partition.splits.division import Division, shared_out


class Quantity(Division):
    """Sizes follow a power law, labels are left to chance: the client of rank r holds a share in proportion to
    r^-exponent.

    With exponent 0 all sizes are equal, as in ``iid``. Clients that would fall below ``partition.min_size`` are filled
    from the largest.
    """

    name: Literal["quantity"] = "quantity"
    exponent: float = Field(1.0, ge=0, le=10, description="of the power law: 0 is equal, 1 is Zipf's law")

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        rank = shared_out(len(y), np.arange(1, clients + 1, dtype=np.float64) ** -self.exponent)
        return rng.permutation(rng.permutation(clients)[rank])
