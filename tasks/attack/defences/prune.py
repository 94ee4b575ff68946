"""Pruning of small entries."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.attack.defences.defence import Defence
from tasks.tree import Tree


class Prune(Defence):
    """Sends the largest entries of the update alone, and zeros for the others.

    The adaptive attacker compares its simulation on the entries that arrived.

    Source: Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019, section 5.2.
    """

    name: Literal["prune"] = "prune"
    share: float = Field(0.9, ge=0, lt=1, description="share of the entries that are set to 0")

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        entries = tree.vector(delta)
        kept = max(1, math.ceil((1 - self.share) * len(entries)))
        largest = torch.topk(entries.abs(), kept).indices
        return tree.like(torch.zeros_like(entries).index_copy(0, largest, entries[largest]), delta)

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        return tree.map(lambda mine, theirs: mine * (theirs != 0), simulated, received)

    @property
    def says(self) -> str:
        return f"with its smallest {self.share:.0%} pruned"
