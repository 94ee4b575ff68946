"""The median of every coordinate over the last round's uploads."""

from typing import Literal

from torch import Tensor

from tasks import tree
from tasks.aggregate.merges.merge import Combination
from tasks.tree import Tree


class Median(Combination):
    """The median of every coordinate, each upload counted once: a client may lie about its weight.

    Of an even number, the mean of the middle two. Stays within the honest values while fewer than half are corrupt.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
    definition 1.
    """

    name: Literal["median"] = "median"

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        n = len(weights)
        return tree.map(lambda d: d.sort(0).values[(n - 1) // 2 : n // 2 + 1].mean(0), deltas)
