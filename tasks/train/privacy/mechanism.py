"""Differential privacy of a federated run: what a device does, what the server does, and what it has cost so far.

A mechanism is a method like any other. Its server state is a tree (the clip norm, where it adapts), part of the
checkpoint; what clients must know of it is broadcast under ``privacy/``. ``on_device`` and ``on_arrival`` are written
for one client and run stacked.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from tasks.config import Config
from tasks.tree import Tree


class Participation(NamedTuple):
    """How clients are called, which is what an accountant has to know.

    ``rounds`` released so far; ``cohort`` expected clients a round of a ``population``; ``poisson``: each client by its
    own coin (else a fixed number without replacement); ``busiest``: the most often that any one client has sent.
    Where clients are not drawn for each round, ``exposure`` is the most that any one has weighed: the sum over all
    releases of the square of its weight, that of the heaviest upload of a release being 1.
    """

    rounds: int
    cohort: int
    population: int
    poisson: bool
    busiest: int
    exposure: float | None = None


class Sums(NamedTuple):
    """A round's accepted uploads added up: ``total`` = sum of weight * upload, ``notes`` = sum of the notes.
    ``heaviest`` is the greatest weight that any upload has in the total, by which noise is measured."""

    total: Tree
    notes: Tree
    weight: Tensor
    count: int
    heaviest: float = 1.0


class Mechanism(Config):
    """No protection: the identity in every place. The base of the mechanisms that do protect."""

    name: str

    def init(self) -> Tree:
        """The server's state at the start, scalars by name; broadcast to the clients each round."""
        return {}

    def on_device(self, state: Tree, upload: Tree, key: Tensor) -> tuple[Tree, Tree]:
        """``(upload, note)`` before the uplink chain; the note crosses the wire beside the payload, uncompressed."""
        return upload, {}

    def on_arrival(self, state: Tree, upload: Tree) -> Tree:
        """One decoded upload as the server takes it into its sum."""
        return upload

    def release(self, state: Tree, sums: Sums, cohort: int, key: Tensor) -> tuple[Sums, Tree]:
        """The sums that leave the trusted part of the server, and the next state. ``cohort`` is the expected size."""
        return sums, state

    def epsilon(self, participation: Participation) -> float | None:
        """The privacy loss of the run so far at :meth:`target_delta`, or None where nothing is promised."""
        return None

    def extrapolated(self, participation: Participation) -> float | None:
        """What :meth:`epsilon` would be at the larger scale that the mechanism was asked to extrapolate to, if any."""
        return None

    def target_delta(self, population: int) -> float | None:
        """The delta at which epsilon is reported, or None where nothing is promised."""
        return None

    def clipped_at(self, state: Tree) -> float | None:
        """The clip norm in force, for the history."""
        return None

    def conflicts(self, weighting: str, sampling: str, cohort: int) -> Iterator[str]:
        """What in the rest of the ``train`` section breaks the promise, each problem with its path in `params.yaml`."""
        yield from ()
