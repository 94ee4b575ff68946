"""What clients keep between their participations: optimiser moments, control variates, residuals. It never travels.

It lives in a file, one row a client that was ever called, so that memory grows neither with the population nor with the
rounds. A row is never overwritten before the next checkpoint: a client's new row goes to a free slot, and the slot of
its last checkpointed row is free again only after the next. So the file and the index of any checkpoint fit together,
and saving a checkpoint writes the index alone.
"""

from pathlib import Path

import numpy as np
import torch

from tasks import artifacts
from tasks.tree import Tree

NOWHERE = -1


class ClientMemory:
    """The memories of one kind of work.

    Parameters
    ----------
    fresh : the memory of a client that was never called.
    clients : size of the population.
    file : where the rows are kept.
    """

    def __init__(self, fresh: Tree, clients: int, file: Path):
        self.fresh, self.file = fresh, file
        self.row = _bytes({name: value[None] for name, value in fresh.items()})
        self.slots = np.full(clients if fresh else 0, NOWHERE, np.int32)
        self.saved = self.slots.copy()
        self.free: list[int] = []
        self.rows = np.zeros((0, self.row.shape[1]), np.uint8)

    def gather(self, clients: np.ndarray) -> Tree:
        """The stacked memories of ``clients``."""
        if not self.fresh:
            return {}
        slots = self.slots[clients]
        rows = np.repeat(self.row, len(clients), axis=0)
        rows[slots != NOWHERE] = self.rows[slots[slots != NOWHERE]]
        return _tensors(rows, self.fresh)

    def scatter(self, clients: np.ndarray, memories: Tree) -> None:
        """Keeps the stacked ``memories`` of ``clients``."""
        if not self.fresh:
            return
        for client in clients[self.slots[clients] == self.saved[clients]]:
            self.slots[client] = self._take()
        self.rows[self.slots[clients]] = _bytes(memories)

    def _take(self) -> int:
        if not self.free:
            self._grow()
        return self.free.pop()

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

    def state(self) -> Tree:
        """The index of what is kept, for a checkpoint: which clients, and where their rows are."""
        visited = np.flatnonzero(self.slots != NOWHERE)
        index = {"clients": torch.from_numpy(visited), "slots": torch.from_numpy(self.slots[visited])}
        return index | {f"fresh/{name}": value for name, value in self.fresh.items()}

    def flush(self) -> None:
        """Writes the rows through to the file, before a checkpoint's index is written."""
        if isinstance(self.rows, np.memmap):
            self.rows.flush()

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
        if not len(state["clients"]):
            return memory
        memory.slots[state["clients"].numpy()] = state["slots"].numpy()
        memory.saved = memory.slots.copy()
        try:
            count = file.stat().st_size // memory.row.shape[1]
            memory._map(count)
        except (OSError, ValueError) as error:
            raise artifacts.Damaged(file, f"cannot be read ({error})") from None
        if count <= memory.slots.max():
            raise artifacts.Damaged(file, "is shorter than its index says")
        memory.free = sorted(set(range(count)) - set(memory.slots[memory.slots != NOWHERE].tolist()), reverse=True)
        return memory


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
