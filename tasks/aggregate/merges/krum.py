"""The upload, or the few, with the closest neighbours."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.aggregate.merges.merge import Combination
from tasks.tree import Tree


class Krum(Combination):
    """The mean of the ``multi`` uploads whose n - f - 2 nearest neighbours are closest; with multi = 1, one of them.

    score(i) = sum of ||d_i - d_j||^2 over the n - f - 2 nearest j to i

    Needs n >= 2 f + 3. Each upload is counted once: a client may lie about its weight.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
    section 4 (Krum) and section 6 (Multi-Krum).
    """

    name: Literal["krum"] = "krum"
    byzantine: int = Field(1, ge=0, description="how many uploads may be corrupt (f)")
    multi: int = Field(1, ge=1, description="how many uploads with the best scores are averaged (m); 1 is Krum itself")

    def conflicts(self, uploads: int) -> Iterator[str]:
        if uploads < 2 * self.byzantine + 3:
            most = (uploads - 3) // 2
            allowed = f"at most {most} with these" if most >= 0 else "3 at the least"
            yield (
                f"aggregate.merge.byzantine = {self.byzantine}: Krum needs 2 * byzantine + 3 = "
                f"{2 * self.byzantine + 3} uploads and there are {uploads} ({allowed}); call more clients a round"
            )
        elif self.multi > uploads - self.byzantine:
            yield (
                f"aggregate.merge.multi = {self.multi}: must be at most {uploads - self.byzantine}, the {uploads} "
                f"uploads less byzantine = {self.byzantine}, or a corrupt one is averaged in"
            )

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        neighbours = len(weights) - self.byzantine - 2
        # The nearest of all is the upload itself, at distance 0.
        nearest = square_distances(deltas).sort(1).values[:, 1 : neighbours + 1]
        best = nearest.sum(1).sort(stable=True).indices[: self.multi].sort().values
        return tree.map(lambda d: d[best].mean(0), deltas)


def square_distances(points: Tree) -> Tensor:
    """Squared Euclidean distances between the slices of a stacked tree: float64 ``[n, n]``, 0 on the diagonal."""
    # Not through a matrix product, which cancels where two uploads are nearly equal.
    flat = (value.reshape(len(value), -1).double() for value in points.values())
    parts = [torch.cdist(v, v, compute_mode="donot_use_mm_for_euclid_dist").square() for v in flat]
    return torch.stack(parts).sum(0)
