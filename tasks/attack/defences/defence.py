"""What a client could have done to its update before it sent it."""

from torch import Tensor

from tasks.config import Config
from tasks.tree import Tree


class Defence(Config):
    """The base: a map from the update of the recorded message to the one that the attacker gets instead."""

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        """``delta`` as the server would have received it. ``key`` is an int64 scalar tensor that the attacker lacks."""
        raise NotImplementedError

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        """What an adaptive attacker, who knows the method, does to the update that it simulates, so as to compare it
        with the ``received`` one: the part of :meth:`protect` that is no secret. Differentiable."""
        raise NotImplementedError

    @property
    def says(self) -> str:
        """The defence in words, to follow "the message"."""
        raise NotImplementedError
