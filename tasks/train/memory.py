"""What clients keep between their participations: optimiser moments, control variates, residuals. It never travels.

It lives in a file, one row a client that was ever called, so that memory grows neither with the population nor with the
rounds. A row is never overwritten before the next checkpoint: a client's new row goes to a free slot, and the slot of
its last checkpointed row is free again only after the next. So the file and the index of any checkpoint fit together,
and saving a checkpoint writes the index alone.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from tasks import artifacts
from tasks.tree import Tree

NOWHERE = -1


class Rows:
    """A file of rows, each a tree with the names, dtypes and shapes of ``like``. None that a checkpoint may know of is
    overwritten."""

    def __init__(self, like: Tree, file: Path):
        self.like, self.file = like, file
        self.row = _bytes({name: value[None] for name, value in like.items()})
        self.rows = np.zeros((0, self.row.shape[1]), np.uint8)
        self.free: list[int] = []

    def read(self, slots: np.ndarray) -> Tree:
        """The rows at ``slots``, stacked."""
        return _tensors(self.rows[slots], self.like)

    def take(self) -> int:
        """A slot to write to."""
        if not self.free:
            self._grow()
        return self.free.pop()

    def flush(self) -> None:
        """Writes the rows through to the file, before a checkpoint's index is written."""
        if isinstance(self.rows, np.memmap):
            self.rows.flush()

    def reopen(self, used: np.ndarray) -> None:
        """Opens the file again, in which the slots ``used`` are taken."""
        try:
            count = self.file.stat().st_size // self.row.shape[1]
            self._map(count)
        except (OSError, ValueError) as error:
            raise artifacts.Damaged(self.file, f"cannot be read ({error})") from None
        if count <= used.max():
            raise artifacts.Damaged(self.file, "is shorter than its index says")
        self.free = sorted(set(range(count)) - set(used.tolist()), reverse=True)

    def _grow(self) -> None:
        used = len(self.rows)
        more = max(64, used // 2)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                file.truncate((used + more) * self.rows.shape[1])
        except OSError as error:
            raise artifacts.unwritable(self.file, error) from error
        self._map(used + more)
        self.free = list(range(used + more - 1, used - 1, -1))

    def _map(self, count: int) -> None:
        self.rows = np.memmap(self.file, np.uint8, "r+", shape=(count, self.row.shape[1]))


class ClientMemory(Rows):
    """The memories of one kind of work.

    Parameters
    ----------
    fresh : the memory of a client that was never called.
    clients : size of the population.
    file : where the rows are kept.
    """

    def __init__(self, fresh: Tree, clients: int, file: Path):
        super().__init__(fresh, file)
        self.slots = np.full(clients if fresh else 0, NOWHERE, np.int32)
        self.saved = self.slots.copy()

    def gather(self, clients: np.ndarray) -> Tree:
        """The stacked memories of ``clients``."""
        if not self.like:
            return {}
        slots = self.slots[clients]
        rows = np.repeat(self.row, len(clients), axis=0)
        rows[slots != NOWHERE] = self.rows[slots[slots != NOWHERE]]
        return _tensors(rows, self.like)

    def scatter(self, clients: np.ndarray, memories: Tree) -> None:
        """Keeps the stacked ``memories`` of ``clients``."""
        if not self.like:
            return
        for client in clients[self.slots[clients] == self.saved[clients]]:
            self.slots[client] = self.take()
        self.rows[self.slots[clients]] = _bytes(memories)

    def state(self) -> Tree:
        """The index of what is kept, for a checkpoint: which clients, and where their rows are."""
        visited = np.flatnonzero(self.slots != NOWHERE)
        index = {"clients": torch.from_numpy(visited), "slots": torch.from_numpy(self.slots[visited])}
        return index | {f"fresh/{name}": value for name, value in self.like.items()}

    def commit(self) -> None:
        """Says that the checkpoint is safe: what was replaced since the one before may be overwritten."""
        replaced = self.saved[(self.saved != self.slots) & (self.saved != NOWHERE)]
        self.free = sorted({*self.free, *replaced.tolist()}, reverse=True)
        self.saved = self.slots.copy()

    @classmethod
    def restored(cls, state: Tree, clients: int, file: Path) -> "ClientMemory":
        """The memory at a checkpoint, from its index and the file."""
        fresh = {name.removeprefix("fresh/"): value for name, value in state.items() if name.startswith("fresh/")}
        memory = cls(fresh, clients, file)
        if len(state["clients"]):
            memory.slots[state["clients"].numpy()] = state["slots"].numpy()
            memory.saved = memory.slots.copy()
            memory.reopen(state["slots"].numpy())
        return memory


class Shelf(Rows):
    """Trees of one shape under numbers: each is put there once and dropped once.

    Parameters
    ----------
    like : one of them.
    file : where they are kept.
    """

    def __init__(self, like: Tree, file: Path):
        super().__init__(like, file)
        self.slots: dict[int, int] = {}
        self.dropped: list[int] = []

    def put(self, numbers: Sequence[int], trees: Tree) -> None:
        """Keeps the stacked ``trees`` under ``numbers``."""
        slots = [self.take() for _ in numbers] if self.like else [NOWHERE] * len(numbers)
        self.slots |= zip(numbers, slots, strict=True)
        if self.like:
            self.rows[slots] = _bytes(trees)

    def get(self, numbers: Sequence[int]) -> Tree:
        """The trees under ``numbers``, stacked."""
        return self.read(np.array([self.slots[number] for number in numbers], np.int64)) if self.like else {}

    def drop(self, numbers: Iterable[int]) -> None:
        """Forgets what is under ``numbers``."""
        self.dropped += [self.slots.pop(number) for number in numbers]

    def state(self) -> Tree:
        """The index of what is kept, for a checkpoint."""
        numbers, slots = (torch.tensor(list(part), dtype=torch.int64) for part in (self.slots, self.slots.values()))
        return {"numbers": numbers, "slots": slots} | {f"like/{name}": value for name, value in self.like.items()}

    def commit(self) -> None:
        """Says that the checkpoint is safe: what was dropped before it may be overwritten."""
        self.free = sorted({*self.free, *self.dropped} - {NOWHERE}, reverse=True)
        self.dropped = []

    @classmethod
    def restored(cls, state: Tree, file: Path) -> "Shelf":
        """The shelf at a checkpoint, from its index and the file."""
        shelf = cls({name.removeprefix("like/"): value for name, value in state.items() if "/" in name}, file)
        shelf.slots = dict(zip(state["numbers"].tolist(), state["slots"].tolist(), strict=True))
        if shelf.slots and shelf.like:
            shelf.reopen(state["slots"].numpy())
        return shelf


def _bytes(stacked: Tree) -> np.ndarray:
    """Each slice of a stacked tree as one row of bytes, uint8 ``[n, bytes]``."""
    flat = (value.cpu().reshape(len(value), -1).contiguous() for value in stacked.values())
    parts = [value.view(torch.uint8).numpy() for value in flat]
    return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.uint8)


def _tensors(rows: np.ndarray, like: Tree) -> Tree:
    """The inverse of :func:`_bytes`, with the names, dtypes and shapes of ``like``."""
    tree, start = {}, 0
    for name, value in like.items():
        size = value.numel() * value.element_size()
        piece = torch.from_numpy(np.ascontiguousarray(rows[:, start : start + size]))
        tree[name] = piece.view(value.dtype).reshape(len(rows), *value.shape)
        start += size
    return tree
