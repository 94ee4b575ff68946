"""No defence beyond what the run itself had."""

from typing import Literal

from torch import Tensor

from tasks.attack.defences.defence import Defence
from tasks.tree import Tree


class NoDefence(Defence):
    """The message as it was recorded, with whatever protection the run itself had."""

    name: Literal["none"] = "none"

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        return delta

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        return simulated

    @property
    def says(self) -> str:
        return "as it was recorded"
