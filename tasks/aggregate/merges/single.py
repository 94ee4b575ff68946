"""The mean of the models that the clients ended with."""

from typing import Literal

from tasks import tree
from tasks.aggregate.merges.merge import Fusion
from tasks.tree import Tree


class Single(Fusion):
    """One merge of all clients' own models, at the very end: their mean, each counted once.

    After gossip this is the final model. After training alone from one start it is one-shot averaging. It costs every
    client a message up and one down, which is not in the history of the training.

    Source: Zhu et al., "A Single Merging Suffices: Recovering Server-based Learning Performance in Decentralized
    Learning", arXiv:2507.06542, 2025.
    """

    name: Literal["single"] = "single"

    def fuse(self, models: Tree) -> Tree:
        return tree.map(lambda value: value.double().mean(0).to(value.dtype), models)
