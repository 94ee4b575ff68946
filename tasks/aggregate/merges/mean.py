"""The weighted mean of the last round's uploads."""

from typing import Literal

from torch import Tensor

from tasks import tree
from tasks.aggregate.merges.merge import Combination
from tasks.tree import Tree


class Mean(Combination):
    """The weighted mean: sum_i w_i d_i / sum_i w_i.

    After FedAvg with a server step of 1 this is the final model. One upload alone can move it anywhere.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1.
    """

    name: Literal["mean"] = "mean"

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        share = weights / weights.sum()
        return tree.map(lambda d: (share.to(d.dtype) @ d.reshape(len(d), -1)).reshape(d.shape[1:]), deltas)
