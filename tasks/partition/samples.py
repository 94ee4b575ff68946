"""What a dataset gives to the stage: labels in memory, samples that are read when they are needed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from tasks.config import Config, Refused
from tasks.partition.federation import Kind

FIELD = "params.yaml: partition.dataset"
"""Where a refused dataset was named."""


@dataclass(frozen=True)
class Rows:
    """Samples at rest: ``read`` turns int64 positions [n] in their source into samples [n, *shape]."""

    index: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: np.ndarray) -> "Rows":
        return Rows(self.index[index], self.read)

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """All samples in order, at most ``rows`` of them at a time."""
        for start in range(0, len(self), rows):
            yield self.read(self.index[start : start + rows])


@dataclass(frozen=True)
class Samples:
    """A labelled dataset with its test set.

    ``x`` holds n samples of ``shape``, ``y`` their labels, int64 [n]; ``columns`` are arrays [n] by which the samples
    can be split or grouped, and ``group`` names the one that is published as the groups of the federation.
    """

    x: Rows
    y: np.ndarray
    test_x: Rows
    test_y: np.ndarray
    kind: Kind
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    range: tuple[float, float] | None = None
    features: tuple[str, ...] | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    test_columns: dict[str, np.ndarray] = field(default_factory=dict)
    group: str | None = None


class Source(Config):
    """The base of all datasets. ``kinds`` is what its samples may be, as far as the settings alone can tell."""

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "table")

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.name

    def shares(self, other: "Source") -> bool:
        """Whether a training sample of this dataset may be one of the ``other``, as far as the settings tell."""
        where = {"name", "path"}
        return self.model_dump(include=where) == other.model_dump(include=where)

    def load(self, seed: int, test_fraction: float) -> Samples:
        """The samples. Data without a test set of their own lose ``test_fraction`` of every class to one.

        Raises ``Refused`` where the data are missing, damaged or not what the settings say.
        """
        raise NotImplementedError


class Located(Source):
    """A dataset that any number of files can hold: a person calls it by the name of its file or folder."""

    path: Path

    @property
    def title(self) -> str:
        return self.path.stem


def hold_out(y: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The positions of a training and a test part, both sorted, of which the test part has ``fraction`` of every class.

    Every class keeps a training sample, and the test part has at least one sample.
    """
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    _, first, counts = np.unique(y[order], return_index=True, return_counts=True)
    taken = np.minimum(np.floor(counts * fraction + 0.5).astype(np.int64), counts - 1)
    if taken.sum() == 0:
        if counts.max() < 2:
            raise Refused(FIELD, None, "every class has a single sample, so none can be set aside as a test set")
        taken[counts.argmax()] = 1
    rank = np.arange(len(y)) - np.repeat(first, counts)
    test = rank < np.repeat(taken, counts)
    return np.sort(order[~test]), np.sort(order[test])


def coded(labels: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of any type as int64 codes [n] and the names of the codes, in sorted order.

    Raises ``Refused`` where they are no classes: fractional numbers, or one value alone.
    """
    if labels.dtype.kind == "f" and (not np.isfinite(labels).all() or (labels != np.round(labels)).any()):
        raise Refused(
            where, None, "holds fractional or missing numbers", "Only classification is supported: give a class a row"
        )
    values, codes = np.unique(labels.astype(np.int64) if labels.dtype.kind == "f" else labels, return_inverse=True)
    if len(values) < 2:
        raise Refused(where, str(values[0]) if len(values) else None, "must hold two classes or more")
    return codes.astype(np.int64).reshape(-1), tuple(str(value) for value in values)


def numbered(y: np.ndarray, test_y: np.ndarray, where: str) -> tuple[str, ...]:
    """The names of integer labels that already count from 0: one for every number up to the largest."""
    low, high = min(y.min(), test_y.min()), max(y.max(), test_y.max())
    if low < 0:
        raise Refused(where, int(low), "labels must be 0 or more")
    return tuple(str(label) for label in range(max(int(high) + 1, 2)))
