"""Tables as numbers: standardised columns and one-hot categories, fitted on the training part alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.config import Refused

Reader = Callable[[np.ndarray], np.ndarray]

BLOCK = 1 << 16
"""Rows in memory at a time while means are taken."""


@dataclass(frozen=True)
class Standard:
    """Columns with their mean taken off, in units of their standard deviation; a constant column becomes zero."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, matrix: np.ndarray, train: np.ndarray, where: str) -> "Standard":
        """The mean and deviation of the rows ``train`` of ``matrix`` [n, features]. Refuses NaN and infinity."""
        mean, square = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1])
        for start in range(0, len(train), BLOCK):
            mean += matrix[train[start : start + BLOCK]].astype(np.float64).sum(0)
        mean /= len(train)
        if not np.isfinite(mean).all():
            mend = "Fill it or drop its rows; for CSV and Parquet `dataset: {name: table, missing: fill}` does"
            raise Refused(where, None, f"column {int(np.argmin(np.isfinite(mean)))} holds NaN or infinity", mend)
        for start in range(0, len(train), BLOCK):
            square += ((matrix[train[start : start + BLOCK]].astype(np.float64) - mean) ** 2).sum(0)
        deviation = np.sqrt(square / len(train))
        return cls(mean, np.where(deviation > 0, deviation, 1.0))

    def reader(self, matrix: np.ndarray) -> Reader:
        return lambda index: ((matrix[index].astype(np.float64) - self.mean) / self.deviation).astype(np.float32)


def encoded(columns: dict[str, np.ndarray], train: np.ndarray, where: str) -> tuple[Reader, tuple[str, ...]]:
    """A reader of a table given by its columns [n], and the names of what it reads.

    Numbers are standardised. Text is one-hot over the values seen in the rows ``train``; a value never seen there is
    all zeros.
    """
    readers: list[Reader] = []
    names: list[str] = []
    for name, values in columns.items():
        if values.dtype.kind in "fiub":
            column = values[:, None]
            readers.append(Standard.fit(column, train, f"{where}: {name}").reader(column))
            names.append(name)
        else:
            levels = np.unique(values[train])
            readers.append(_one_hot(values, levels))
            names += [f"{name}={level}" for level in levels]
    return lambda index: np.concatenate([read(index) for read in readers], axis=1), tuple(names)


def _one_hot(values: np.ndarray, levels: np.ndarray) -> Reader:
    return lambda index: (values[index][:, None] == levels).astype(np.float32)
