"""Every client alike."""

from typing import Literal

import numpy as np

from tasks.partition.index import equal_parts
from tasks.partition.splits.division import Division


class Iid(Division):
    """The samples are shuffled and dealt out in equal numbers: no heterogeneity but chance."""

    name: Literal["iid"] = "iid"

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        return rng.permutation(equal_parts(len(y), clients))
