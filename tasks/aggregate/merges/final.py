"""The model as the training left it."""

from typing import Literal

from torch import Tensor

from tasks.aggregate.merges.merge import Merge
from tasks.tree import Tree


class Final(Merge):
    """Releases the model of the last round as it is."""

    name: Literal["final"] = "final"

    @property
    def reads_uploads(self) -> bool:
        return False

    def merge(self, final: Tree, start: Tree, deltas: Tree, weights: Tensor) -> Tree:
        return final
