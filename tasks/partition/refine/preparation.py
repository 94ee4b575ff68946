"""What every refinement is: a method that changes the data of a federation before anything is trained on them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tasks import tree
from tasks.artifacts import write_tree
from tasks.config import Config, Refused
from tasks.partition.federation import Exchange, Kind
from tasks.partition.index import Index

RECORDED = 1000
"""Clients whose message is kept, the first ones."""


@dataclass(frozen=True)
class Partitioned:
    """Samples with their owners.

    ``x`` [samples, *shape] may be memory-mapped, ``y`` int64 [samples]; ``index`` says who owns which and what of it
    trains. ``groups`` int64 [samples], or None. ``synthetic``: so many samples at the end were made, not measured.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    index: Index
    kind: Kind
    classes: int
    range: tuple[float, float] | None = None
    features: tuple[str, ...] | None = None
    groups: np.ndarray | None = None
    synthetic: int = 0

    @property
    def clients(self) -> int:
        return len(self.index.train_sizes)

    @property
    def owner(self) -> np.ndarray:
        """The client of each entry of ``index.indices``: int64 [samples]."""
        return np.repeat(np.arange(self.clients), np.diff(self.index.offsets))

    @property
    def trains(self) -> np.ndarray:
        """Whether each entry of ``index.indices`` trains: bool [samples]."""
        place = np.arange(len(self.index.indices)) - self.index.offsets[self.owner]
        return place < self.index.train_sizes[self.owner]

    def train(self, client: int) -> np.ndarray:
        """The positions in ``x`` of a client's training samples."""
        start = self.index.offsets[client]
        return self.index.indices[start : start + self.index.train_sizes[client]]

    def grown(self, x: np.ndarray, y: np.ndarray, owner: np.ndarray, groups: np.ndarray | None) -> "Partitioned":
        """With synthetic samples at the end, on which their owners train. Without any it is the same object."""
        if not len(y):
            return self
        added = np.arange(len(self.y), len(self.y) + len(y))
        client = np.concatenate([self.owner, owner])
        # A client's measured samples, then its new ones, then those that validate.
        part = np.concatenate([np.where(self.trains, 0, 2), np.ones(len(y), np.int64)])
        order = np.lexsort((part, client))
        index = Index(
            np.concatenate([self.index.indices, added])[order],
            np.concatenate([[0], np.cumsum(np.bincount(client, minlength=self.clients))]),
            self.index.train_sizes + np.bincount(owner, minlength=self.clients),
        )
        return replace(
            self,
            x=np.concatenate([self.x, x]),
            y=np.concatenate([self.y, y]),
            index=index,
            range=None,
            groups=None if self.groups is None else np.concatenate([self.groups, groups]),
            synthetic=self.synthetic + len(y),
        )


@dataclass
class Wire:
    """Between the clients and the server of an exchange before the training: measures and keeps what crosses."""

    folder: Path
    clients: int
    notes: dict[str, int] = field(default_factory=dict)
    """what the refinement counted"""

    def __post_init__(self):
        self.up, self.down = np.zeros(self.clients, np.int64), np.zeros(self.clients, np.int64)
        self.exposed = np.zeros(self.clients, np.int64)

    def upload(self, client: int, message: tree.Tree, exposed: int = 0) -> None:
        """A client's message to the server, out of which ``exposed`` of its samples can be calculated exactly."""
        self.up[client] += tree.nbytes(message)
        self.exposed[client] += exposed
        if client < RECORDED:
            write_tree(self.folder / f"client-{client:05d}.safetensors", message)

    def broadcast(self, message: tree.Tree) -> None:
        """The server's message to all clients."""
        self.down += tree.nbytes(message)
        write_tree(self.folder / "broadcast.safetensors", message)

    @property
    def total(self) -> Exchange:
        return Exchange(
            bytes_up=int(self.up.sum()), bytes_down=int(self.down.sum()), exposed_samples=int(self.exposed.sum())
        )

    def content(self) -> dict[str, Any]:
        """What was counted, and what each recorded client sent and got."""
        clients = range(min(self.clients, RECORDED))
        rows = {
            name: [int(each[client]) for client in clients]
            for name, each in (("bytes_up", self.up), ("bytes_down", self.down), ("exposed_samples", self.exposed))
        }
        return {"folder": self.folder.name, **self.notes, **self.total.model_dump(), "clients": rows}


class Preparation(Config):
    """The base of all refinements.

    A client's measured samples are kept, and new ones are added to those that it trains on. What validates or tests is
    encoded like the rest, but nothing is ever estimated from it.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "table")
    """What it can be applied to."""
    gives: ClassVar[Kind | None] = None
    """What it makes of that; None where it stays what it is."""
    mend: ClassVar[str] = "take it out"
    """What to do where it cannot be applied."""
    reads_data: ClassVar[bool] = True
    """Whether what it does to a sample depends on other samples, which no mechanism of `train.privacy` protects."""

    def check(self, kind: Kind) -> None:
        """Raises ``Refused`` where samples of this kind cannot be changed so."""
        if kind not in self.kinds:
            problem = f"works on {' and '.join(self.kinds)} data, not {kind}"
            raise self._refused(problem, self.mend[0].upper() + self.mend[1:])

    def refine(self, data: Partitioned, key: int, wire: Wire) -> Partitioned:
        """The refined samples; all that crosses between clients and server passes ``wire``."""
        raise NotImplementedError

    def _refused(self, problem: str, mend: str, field: str = "name") -> Refused:
        return Refused(f"params.yaml: partition.refine: {self.name}.{field}", getattr(self, field), problem, mend)
