"""What every frozen encoder is: the same features for everybody, fixed before the federation begins."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from tasks.partition.federation import Kind
from tasks.partition.refine.preparation import Partitioned, Preparation, Wire

BLOCK = 4096
"""Samples in memory at a time."""

Encode = Callable[[np.ndarray], np.ndarray]
"""From float64 [n, inputs] to [n, components]."""


class Encoder(Preparation):
    """The base of all frozen encoders: images may be pooled, all else is read as one vector a sample."""

    gives: ClassVar[Kind | None] = "table"
    components: int = Field(48, ge=1, description="features of a sample (p)")
    pool: int = Field(1, ge=1, description="side of the squares of pixels whose average is read; 1 for every pixel")

    def fit(self, blocks: Callable[[], Iterator[np.ndarray]], inputs: int, key: int) -> Encode:
        """The encoder. ``blocks()`` goes through the training samples, float64 [n, inputs] at a time."""
        raise NotImplementedError

    def refine(self, data: Partitioned, key: int, wire: Wire) -> Partitioned:
        if self.pool > 1 and (data.kind != "image" or any(side % self.pool for side in data.x.shape[2:])):
            shape = " x ".join(map(str, data.x.shape[1:]))
            raise self._refused(f"must divide the sides of images, and samples are {data.kind}s of {shape}", "", "pool")
        trained = np.sort(data.index.indices[data.trains])
        inputs = self._flat(data.x[:1]).shape[1]
        encode = self.fit(lambda: self._blocks(data.x, trained), inputs, key)

        def encoded(x: np.ndarray) -> np.ndarray:
            blocks = [encode(block).astype(np.float32) for block in self._blocks(x, np.arange(len(x)))]
            return np.concatenate(blocks)

        names = tuple(f"{self.name} {i}" for i in range(self.components))
        changed = {"kind": self.gives, "range": None, "features": names}
        return replace(data, x=encoded(data.x), test_x=encoded(data.test_x), **changed)

    def _blocks(self, x: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
        return (self._flat(x[rows[start : start + BLOCK]]) for start in range(0, len(rows), BLOCK))

    def _flat(self, x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        if self.pool > 1:
            n, channels, height, width = x.shape
            side = self.pool
            x = x.reshape(n, channels, height // side, side, width // side, side).mean((3, 5))
        return x.reshape(len(x), -1)
