"""No feature skew."""

from typing import ClassVar, Literal

import numpy as np

from tasks.partition.skews.distortion import Distortion, Range


class NoSkew(Distortion):
    """Every client sees the samples as they are."""

    name: Literal["none"] = "none"
    kinds: ClassVar[tuple[str, ...]] = ("image", "table", "text")

    def draw(self, clients: int, channels: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(clients, np.int8)

    def apply(self, x: np.ndarray, mark: np.ndarray, bounds: Range, rng: np.random.Generator) -> np.ndarray:
        return x
