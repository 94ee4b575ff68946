"""How different the clients are, in numbers: what ``card.json`` holds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.partition.federation import Exchange
from tasks.partition.index import Index

CELLS = 1 << 22
"""Label counts in memory at a time."""
SHOWN = 200
"""Clients of a larger federation that are compared in pairs and drawn: evenly spaced by number."""
LISTED = 20_000
"""Label counts that ``card.json`` lists at most."""


@dataclass(frozen=True)
class Card:
    """The heterogeneity of a split. All arrays run over all clients, but for the two about ``shown`` clients.

    ``labels`` int64 [classes] counts of all data. ``sizes`` int64 samples of a client; ``total_variation`` the distance
    of its label distribution p to that of all data g, sum |p - g| / 2, in 0..1; ``effective_classes`` exp of the
    entropy of p, in 1..classes. ``shown`` int64 client numbers, ``counts`` int64 [shown, classes] their histograms, and
    ``divergence`` [shown, shown] the Jensen-Shannon divergence of every pair in bits, in 0..1: 0 for equal
    distributions, 1 where no class is shared. ``moved`` samples had to be moved to keep a minimum size, ``synthetic``
    were made by a refinement, for which ``exchange`` was sent.
    """

    labels: np.ndarray
    sizes: np.ndarray
    total_variation: np.ndarray
    effective_classes: np.ndarray
    shown: np.ndarray
    counts: np.ndarray
    divergence: np.ndarray
    moved: int
    synthetic: int = 0
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def gini(self) -> float:
        """The Gini coefficient of the sizes: 0 where all are equal, towards 1 where one client has everything."""
        ordered = np.sort(self.sizes).astype(np.float64)
        n = len(ordered)
        return float(2 * (np.arange(1, n + 1) @ ordered) / (n * ordered.sum()) - (n + 1) / n)

    @property
    def pairs(self) -> np.ndarray:
        """The divergences of the distinct pairs of shown clients; one 0 where there is a single client."""
        above = self.divergence[np.triu_indices(len(self.shown), 1)]
        return above if len(above) else np.zeros(1)

    def numbers(self) -> dict[str, float]:
        """The few numbers by which the stage is judged: ``metrics/partition.json``."""
        return {
            "clients": len(self.sizes),
            "samples": int(self.sizes.sum()),
            "smallest_client": int(self.sizes.min()),
            "median_client": float(np.median(self.sizes)),
            "largest_client": int(self.sizes.max()),
            "size_gini": _rounded(self.gini),
            "label_divergence": _rounded(self.pairs.mean()),
            "total_variation": _rounded(self.total_variation.mean()),
            "effective_classes": _rounded(self.effective_classes.mean()),
            "moved_samples": self.moved,
            "synthetic_samples": self.synthetic,
            **{f"exchange_{name}": value for name, value in self.exchange.model_dump().items()},
        }

    def content(self) -> dict[str, Any]:
        """What ``card.json`` says; bounded in size, however many clients there are."""
        listed = self.shown[: max(LISTED // self.counts.shape[1], 1)]
        return {
            **self.numbers(),
            "labels": self.labels.tolist(),
            "size_quantiles": _quantiles(self.sizes),
            "total_variation_quantiles": _quantiles(self.total_variation),
            "total_variation_by_samples": _rounded(np.average(self.total_variation, weights=self.sizes)),
            "effective_classes_quantiles": _quantiles(self.effective_classes),
            "label_divergence_quantiles": _quantiles(self.pairs),
            "label_histograms": {
                str(client): " ".join(map(str, row)) for client, row in zip(listed, self.counts.tolist(), strict=False)
            },
        }


def measure(y: np.ndarray, index: Index, classes: int, moved: int = 0) -> Card:
    """The card of a split of the labels ``y`` int64 [samples]; ``moved`` samples were moved to keep a minimum size."""
    sizes = np.diff(index.offsets)
    clients = len(sizes)
    labels = np.bincount(y, minlength=classes)
    overall = labels / len(y)
    shown = np.unique(np.linspace(0, clients - 1, min(clients, SHOWN)).astype(np.int64))
    distance, entropy = np.empty(clients), np.empty(clients)
    counts = np.empty((len(shown), classes), np.int64)
    block = max(CELLS // classes, 1)
    for start in range(0, clients, block):
        stop = min(start + block, clients)
        histogram = _histograms(y, index, start, stop, classes)
        p = histogram / sizes[start:stop, None]
        distance[start:stop] = np.abs(p - overall).sum(1) / 2
        entropy[start:stop] = _entropy(p)
        here = (shown >= start) & (shown < stop)
        counts[here] = histogram[shown[here] - start]
    return Card(labels, sizes, distance, np.exp(entropy), shown, counts, jensen_shannon(counts), moved)


def jensen_shannon(counts: np.ndarray) -> np.ndarray:
    """The divergence of every pair of histograms ``counts`` [n, classes], in bits: float64 [n, n].

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, with H the entropy.

    Source: Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Trans. Information Theory 37(1), 1991,
    eq. (4.1).
    """
    p = counts / counts.sum(1, keepdims=True)
    own = _entropy(p)
    nats = np.stack([_entropy((p + row) / 2) - (own + mine) / 2 for row, mine in zip(p, own, strict=True)])
    return np.clip(nats / np.log(2), 0.0, 1.0)


def _histograms(y: np.ndarray, index: Index, start: int, stop: int, classes: int) -> np.ndarray:
    """The label counts of the clients from ``start`` to before ``stop``: int64 [clients, classes]."""
    first, last = index.offsets[start], index.offsets[stop]
    client = np.repeat(np.arange(stop - start), np.diff(index.offsets[start : stop + 1]))
    cell = client * classes + y[index.indices[first:last]]
    return np.bincount(cell, minlength=(stop - start) * classes).reshape(stop - start, classes)


def _entropy(p: np.ndarray) -> np.ndarray:
    """The entropy of the rows of ``p`` [n, classes] in nats: [n]."""
    return -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(1)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    at = (0, 10, 25, 50, 75, 90, 100)
    return {f"{q}%": _rounded(value) for q, value in zip(at, np.percentile(values, at), strict=True)}


def _rounded(value: float) -> float:
    return round(float(value), 6)
