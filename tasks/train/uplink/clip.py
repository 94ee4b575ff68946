"""Clipping of the whole upload to a Euclidean ball."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.train.uplink.codec import Codec
from tasks.tree import Tree


def clip(values: Tree, norm: float | Tensor) -> Tree:
    """``values * min(1, norm / ||values||)``: a tree inside the ball shorter than ``norm`` is left to the last bit."""
    length = tree.norm(values)
    return tree.scale(values, (norm / length.clamp(min=1e-30)).clamp(max=1.0))


class Clip(Codec):
    """Scales an upload that is longer than ``norm`` back to that length.

    clip(u) = u * min(1, norm / ||u||)

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """

    name: Literal["clip"] = "clip"
    norm: float = Field(1.0, gt=0, description="greatest Euclidean norm of an upload")

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        return clip(values, self.norm), {}

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        return carried
