"""How good a model is: on the global test set, and for one client after the other."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from tasks.keys import generator
from tasks.models import Network, score
from tasks.partition.federation import Federation
from tasks.tree import Tree, take

SAMPLES_AT_ONCE = 8192
FIGURES = ("mean", "std", "worst_decile", "best_decile", "minimum", "median", "maximum", "gini", "jain")


@dataclass
class Tally:
    """Sums over each client's samples: the arrays are ``[clients]``."""

    samples: np.ndarray
    losses: np.ndarray
    hits: np.ndarray

    @classmethod
    def empty(cls, clients: int) -> "Tally":
        return cls(np.zeros(clients, np.int64), np.zeros(clients), np.zeros(clients))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.samples + other.samples, self.losses + other.losses, self.hits + other.hits)

    @property
    def loss(self) -> np.ndarray:
        """The mean loss of every client, NaN where it has no sample."""
        return _ratio(self.losses, self.samples)

    @property
    def accuracy(self) -> np.ndarray:
        """The share of every client's samples that are classified right, NaN where it has no sample."""
        return _ratio(self.hits, self.samples)


@dataclass
class ClientScores:
    """How one model serves each of ``clients``: on what it trained on, and on what it held out."""

    clients: np.ndarray
    train: Tally = field(repr=False)
    validation: Tally = field(repr=False)

    @property
    def all(self) -> Tally:
        return self.train + self.validation


def on_test(network: Network, model: Tree, federation: Federation) -> dict:
    """Accuracy and loss on the global test set, also by class and, where the data have groups, by group."""
    meta = federation.meta
    x, y = torch.from_numpy(np.array(federation.test_x)), torch.from_numpy(np.array(federation.test_y))
    losses, hits = (values.double().numpy() for values in score(network, model, x, y))
    result = {
        "samples": len(losses),
        "accuracy": number(hits.mean()),
        "loss": number(losses.mean()),
        "classes": _by(federation.test_y, meta.class_names, losses, hits),
    }
    if meta.groups is not None:
        groups = _by(federation.test_groups, meta.groups.values, losses, hits)
        shares = [group["accuracy"] for group in groups if group["accuracy"] is not None]
        result["groups"] = {"name": meta.groups.name, "values": groups, "gap": number(max(shares) - min(shares))}
    return result


def chosen(clients: int, most: int, seed: int) -> np.ndarray:
    """The clients to evaluate one by one, in order: all, or ``most`` of them drawn without replacement."""
    if clients <= most:
        return np.arange(clients)
    return np.sort(generator(seed, "evaluated clients").choice(clients, most, replace=False))


def on_clients(network: Network, model: Tree, federation: Federation, clients: np.ndarray) -> ClientScores:
    """How ``model`` serves each of ``clients``; samples are read a few thousand at a time."""
    parts = [Tally.empty(len(clients)), Tally.empty(len(clients))]
    for rows in _portions(federation.owned[clients]):
        positions = [_owned(federation, int(c)) for c in clients[rows]]
        sizes = np.array([len(p) for p in positions])
        owner = np.repeat(rows, sizes)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        held_out = within >= federation.sizes[clients][owner]
        every = np.concatenate(positions)
        losses, hits = _score(network, model, federation, every)
        for part, mine in zip(parts, (~held_out & federation.measured(every), held_out), strict=True):
            part.samples += np.bincount(owner[mine], minlength=len(clients))
            part.losses += np.bincount(owner[mine], losses[mine], len(clients))
            part.hits += np.bincount(owner[mine], hits[mine], len(clients))
    return ClientScores(clients, *parts)


def with_own_models(
    network: Network, groups: Iterator[tuple[np.ndarray, Tree]], federation: Federation, clients: np.ndarray
) -> Tally:
    """How each of ``clients`` is served on its held-out samples by its own model, stacked with others in ``groups``."""
    tally = Tally.empty(len(clients))
    row = {int(client): i for i, client in enumerate(clients)}
    for group, models in groups:
        for i, client in enumerate(group):
            positions = federation.validation(int(client))
            if len(positions):
                losses, hits = _score(network, take(models, i), federation, positions)
                at = row[int(client)]
                tally.samples[at], tally.losses[at], tally.hits[at] = len(positions), losses.sum(), hits.sum()
    return tally


def distribution(values: np.ndarray, worst: Literal["low", "high"]) -> dict:
    """How ``values`` ``[clients]`` of 0 or more are spread. A decile is the mean of a tenth of them, rounded up.

    The tenth that is ``worst`` has low or high values. ``gini`` is 0 where all are alike and towards 1 where one has it
    all; ``jain`` is 1 where all are alike and 1/n where one has it all (Jain, Chiu and Hawe, DEC Research Report 301,
    1984). A value that is not finite makes every figure null.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, tenth = len(ordered), math.ceil(len(ordered) / 10)
    if not n or not np.isfinite(ordered).all():
        return dict.fromkeys(FIGURES)
    total, squares = ordered.sum(), np.square(ordered).sum()
    # The mean absolute difference of all pairs, from the order statistics.
    pairs = 2 * np.dot(2 * np.arange(1, n + 1) - n - 1, ordered) / n**2
    tails = float(ordered[:tenth].mean()), float(ordered[-tenth:].mean())
    figures = (
        float(ordered.mean()),
        float(ordered.std()),
        *(tails if worst == "low" else tails[::-1]),
        float(ordered[0]),
        float(np.median(ordered)),
        float(ordered[-1]),
        float(pairs / (2 * total / n)) if total else 0.0,
        float(total**2 / (n * squares)) if squares else 1.0,
    )
    return dict(zip(FIGURES, figures, strict=True))


def number(value: float) -> float | None:
    """``value`` as JSON takes it: null where it is not finite."""
    return float(value) if math.isfinite(value) else None


def _score(
    network: Network, model: Tree, federation: Federation, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x, y = torch.from_numpy(federation.x[positions]), torch.from_numpy(federation.y[positions])
    losses, hits = score(network, model, x, y)
    return losses.double().numpy(), hits.double().numpy()


def _owned(federation: Federation, client: int) -> np.ndarray:
    return np.array(federation.indices[federation.offsets[client] : federation.offsets[client + 1]])


def _portions(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of rows with about :data:`SAMPLES_AT_ONCE` samples together, and at least one row."""
    portion = (np.cumsum(sizes) - sizes) // SAMPLES_AT_ONCE
    for rows in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(portion)) + 1):
        if sizes[rows].sum():
            yield rows


def _by(kind: np.ndarray, names: tuple[str, ...], losses: np.ndarray, hits: np.ndarray) -> list[dict]:
    count = np.bincount(kind, minlength=len(names))
    loss = _ratio(np.bincount(kind, losses, len(names)), count)
    right = _ratio(np.bincount(kind, hits, len(names)), count)
    return [
        {"name": name, "samples": int(count[i]), "accuracy": number(right[i]), "loss": number(loss[i])}
        for i, name in enumerate(names)
    ]


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
