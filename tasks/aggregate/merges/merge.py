"""What every merge is: a function from the end of a training run to the released model."""

from collections.abc import Iterator

from torch import Tensor

from tasks import tree
from tasks.config import Config
from tasks.tree import Tree


class Merge(Config):
    """Makes the released model out of the final model and what single clients left."""

    @property
    def reads_uploads(self) -> bool:
        """Whether it looks at single uploads, which a trusted server's noise does not cover."""
        return True

    @property
    def reads_models(self) -> bool:
        """Whether it looks at the models that clients ended with, each its own."""
        return False

    def conflicts(self, uploads: int) -> Iterator[str]:
        """What rules this merge out when there are ``uploads`` uploads, each as ``field = value: reason``."""
        yield from ()

    def merge(self, final: Tree, start: Tree, deltas: Tree, weights: Tensor) -> Tree:
        """The released model.

        Parameters
        ----------
        final : the model after the last round.
        start : the model that the last round's clients were sent.
        deltas : their changes of it, stacked ``[n, ...]``.
        weights : of the uploads in the average, ``[n]``, positive.
        """
        raise NotImplementedError


class Fusion(Merge):
    """A merge of the models that the clients ended with, each counted once: they may never have met before."""

    @property
    def reads_uploads(self) -> bool:
        return False

    @property
    def reads_models(self) -> bool:
        return True

    def fuse(self, models: Tree) -> Tree:
        """One model out of ``models``, stacked ``[n, ...]``, in whatever order they come."""
        raise NotImplementedError


class Combination(Merge):
    """A merge that puts one combination of the deltas in the place of their average.

    released = start + combine(deltas, weights)

    The server's optimiser takes no part: this is a server step of size 1. What no client uploads stays as in the final
    model.
    """

    def combine(self, deltas: Tree, weights: Tensor) -> Tree:
        """One delta out of ``deltas``, stacked ``[n, ...]``, with ``weights`` ``[n]``, in whatever order they come."""
        raise NotImplementedError

    def merge(self, final: Tree, start: Tree, deltas: Tree, weights: Tensor) -> Tree:
        combined = self.combine(deltas, weights)
        return final | tree.add({name: start[name] for name in combined}, combined)
