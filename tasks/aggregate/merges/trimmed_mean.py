"""The mean of every coordinate without its extremes."""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.aggregate.merges.merge import Combination
from tasks.tree import Tree


class TrimmedMean(Combination):
    """The mean of every coordinate after its k smallest and k largest values are dropped, k = ceil(trim n).

    With trim = 0 the unweighted mean; with the most that can be dropped, the coordinate median. Robust to k corrupt
    uploads. Each upload is counted once: a client may lie about its weight.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
    definition 2 (beta is ``trim``).
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(0.1, ge=0, lt=0.5, description="share of the uploads to drop at either end, rounded up")

    def dropped(self, uploads: int) -> int:
        """How many values of a coordinate are dropped at either end."""
        # 0.07 * 100 is a little more than 7 in floating point, and must not become 8.
        return math.ceil(self.trim * uploads - 1e-9)

    def conflicts(self, uploads: int) -> Iterator[str]:
        if 2 * self.dropped(uploads) >= uploads:
            yield (
                f"aggregate.merge.trim = {self.trim}: drops {self.dropped(uploads)} of {uploads} uploads at either "
                "end, which leaves none; lower it or call more clients a round"
            )

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        n, k = len(weights), self.dropped(len(weights))
        return tree.map(lambda d: d.sort(0).values[k : n - k].mean(0), deltas)
