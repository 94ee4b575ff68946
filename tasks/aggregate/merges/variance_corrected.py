"""The mean of the clients' models, without what averaging takes of the variance of weights."""

from typing import Literal

from tasks.aggregate.merges.merge import Fusion
from tasks.train.topologies.variance import rescaled, spreads
from tasks.tree import Tree


class VarianceCorrected(Fusion):
    """The mean of all clients' own models, in which each weight tensor has the mean of their variances again.

    w <- m + (w - m) sqrt(mean of Var(w_k) / Var(w)),    with w = mean of w_k and m the mean entry of w

    Of equal models this is their mean. Where they never met, as after training from starts of their own, averaging
    divides variances by their number, and a network that is merged so passes nothing on.

    Source: Tian et al., "Vanishing Variance Problem in Fully Decentralized Neural-Network Systems", arXiv:2404.04616,
    2024, applied to one merge.
    """

    name: Literal["variance_corrected"] = "variance_corrected"

    def fuse(self, models: Tree) -> Tree:
        merged = {name: value.double().mean(0) for name, value in models.items()}
        for name, spread in spreads(models).items():
            merged[name] = rescaled(merged[name][None], spread.mean(0, keepdim=True))[0]
        return {name: merged[name].to(value.dtype) for name, value in models.items()}
