"""Noisy negatives: the same shift of all images, to study models that were started from the originals."""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.keys import generator
from tasks.partition.federation import Kind
from tasks.partition.refine.preparation import Partitioned, Preparation, Wire


class Negative(Preparation):
    """Every image, also of the test set, becomes its negative with uniform noise: x <- (1 - a)(1 - x) + a u.

    u is uniform in [0, 1], drawn for each pixel. With ``noise`` = 0 two of them are the identity.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image",)
    reads_data: ClassVar[bool] = False
    name: Literal["negative"] = "negative"
    noise: float = Field(0.2, ge=0, le=1, description="part of a pixel that is noise (a)")

    def refine(self, data: Partitioned, key: int, wire: Wire) -> Partitioned:
        def turned(x: np.ndarray, part: str) -> np.ndarray:
            noise = generator(key, "negative", part).random(x.shape, np.float32)
            return ((1 - self.noise) * (1 - x) + self.noise * noise).astype(np.float32)

        return replace(data, x=turned(np.asarray(data.x), "train"), test_x=turned(np.asarray(data.test_x), "test"))
