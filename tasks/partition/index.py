"""From an owner for every sample to the index that is published: all in whole arrays, for a million clients."""

from typing import NamedTuple

import numpy as np

from tasks.config import Refused


class Index(NamedTuple):
    """Client c owns ``indices[offsets[c]:offsets[c + 1]]``, of which the first ``train_sizes[c]`` train."""

    indices: np.ndarray
    offsets: np.ndarray
    train_sizes: np.ndarray


def equal_parts(count: int, parts: int) -> np.ndarray:
    """The part that each of ``count`` things in a row falls into: int64 [count], part sizes differ by one at most."""
    return np.arange(count) * parts // count


def filled(owner: np.ndarray, clients: int, smallest: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """``owner`` with samples moved until every client has ``smallest``, and how many were moved.

    The largest clients give, all down to one level, and which of their samples they give is drawn; a client that has
    enough never falls below ``smallest``.

    Raises ``Refused`` where there are fewer than ``clients * smallest`` samples.
    """
    if clients * smallest > len(owner):
        found = f"{smallest} x {clients} clients = {clients * smallest}"
        raise Refused(
            "params.yaml: partition.min_size",
            smallest,
            f"{found} is above the {len(owner)} training samples",
            "Lower partition.min_size or partition.clients",
        )
    sizes = np.bincount(owner, minlength=clients)
    lacking = np.maximum(smallest - sizes, 0)
    missing = int(lacking.sum())
    if not missing:
        return owner, 0
    gives = np.maximum(sizes - _level(sizes, missing, smallest), 0)
    # Down to the level the givers have a few samples too many: the first of them give one less.
    givers = np.flatnonzero(gives)
    gives[givers[: int(gives.sum()) - missing]] -= 1
    order = rng.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.arange(len(owner)) - first[owner[order]]
    moved = rng.permutation(order[rank < gives[owner[order]]])
    owner = owner.copy()
    owner[moved] = np.repeat(np.arange(clients), lacking)
    return owner, missing


def _level(sizes: np.ndarray, missing: int, smallest: int) -> int:
    """The highest size to which all larger clients can be cut so that at least ``missing`` samples come free."""
    low, high = smallest, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.maximum(sizes - middle, 0).sum() >= missing:
            low = middle
        else:
            high = middle - 1
    return low


def indexed(owner: np.ndarray, clients: int, validation_fraction: float, rng: np.random.Generator) -> Index:
    """The index of ``owner``, every client's samples in a random order so that its validation part is a random one.

    A client validates the nearest whole number to ``validation_fraction`` of its samples, but keeps one to train on.
    """
    order = rng.permutation(len(owner))
    indices = order[np.argsort(owner[order], kind="stable")]
    sizes = np.bincount(owner, minlength=clients)
    validation = np.minimum(np.floor(sizes * validation_fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    return Index(indices, np.concatenate([[0], np.cumsum(sizes)]), sizes - validation)
