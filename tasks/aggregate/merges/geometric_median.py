"""The point with the least total distance to the last round's uploads."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.aggregate.merges.merge import Combination
from tasks.tree import Tree


class GeometricMedian(Combination):
    """The minimiser of sum_i w_i ||v - d_i||, by the smoothed Weiszfeld iteration.

    b_i = w_i / max(smoothing, ||v - d_i||);  v = sum_i b_i d_i / sum_i b_i

    On a line it is the weighted median. Stays bounded while the corrupt uploads have less than half of the weight.
    Starts at the coordinate median, so that an outlier does not cost iterations.

    Source: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
    Processing 70, 2022, algorithm 2 (nu is ``smoothing``).
    """

    name: Literal["geometric_median"] = "geometric_median"
    smoothing: float = Field(1e-6, gt=0, description="distances below this count as this much (nu)")
    iterations: int = Field(100, ge=1, description="most steps of the iteration")
    tolerance: float = Field(
        1e-6, ge=0, description="stops when a step moves less than this share of the mean distance"
    )

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        points = {name: value.double() for name, value in deltas.items()}
        weights = weights.double()
        center = tree.map(lambda d: d.sort(0).values[(len(d) - 1) // 2], points)
        for _ in range(self.iterations):
            away = distances(points, center)
            pull = weights / away.clamp(min=self.smoothing)
            share = pull / pull.sum()
            nearer = tree.map(lambda d, by=share: torch.tensordot(by, d, 1), points)
            moved = tree.square_distance(nearer, center).sqrt()
            center = nearer
            if moved <= self.tolerance * (share * away).sum():
                break
        return {name: center[name].to(value.dtype) for name, value in deltas.items()}


def distances(points: Tree, center: Tree) -> Tensor:
    """Euclidean distances of the slices of a stacked tree to ``center``: ``[n]``."""
    squares = [(value - center[name]).square().flatten(1).sum(1) for name, value in points.items()]
    return torch.stack(squares).sum(0).sqrt()
