"""One bit a coordinate."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.train.uplink.codec import Codec
from tasks.train.uplink.packing import pack, unpack
from tasks.tree import Tree


class Sign(Codec):
    """Sends the sign of every entry, 8 to a byte, and each tensor's mean magnitude.

    C(u) = (||u||_1 / d) sign(u),   ||u - C(u)||^2 = ||u||^2 - ||u||_1^2 / d

    The sign of 0 is +. A tensor whose entries all have the same magnitude arrives as it was.

    Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
    algorithm 1 and lemma 8.
    """

    name: Literal["sign"] = "sign"
    error_feedback: bool = Field(True, description="add what the signs lost to the client's next upload")

    @property
    def feeds_back(self) -> bool:
        return self.error_feedback

    @property
    def packs(self) -> bool:
        return True

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        packed = tree.map(lambda value: pack(value.reshape(-1) >= 0, 1), values)
        return packed, tree.map(lambda value: value.abs().mean(), values)

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        return tree.map(_read, carried, side, like)


def _read(words: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    bits = unpack(words, 1, like.numel()).to(like.dtype)
    return (scale * (2 * bits - 1)).reshape(like.shape)
