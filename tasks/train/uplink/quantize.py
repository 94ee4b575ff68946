"""Stochastic quantisation to a few bits."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from tasks import keys, tree
from tasks.train.uplink.codec import Codec
from tasks.train.uplink.packing import pack, unpack
from tasks.tree import Tree

ORDERS = {"l2": 2.0, "max": math.inf}


class Quantize(Codec):
    """Rounds every entry at random to one of a few levels, so that its mean is the entry; sign and level take ``bits``.

    Q(u)_i = scale * l_i / s,   l_i in {-s, ..., s},   E l_i = s u_i / scale,   scale = ||u|| of the entry's bucket

    s = 2^(bits - 1) - 1, so 0 is a level and stays 0. With the l2 norm, E ||Q(u) - u||^2 <= min(d / s^2, sqrt(d) / s)
    ||u||^2 in a bucket of d entries. The largest magnitude as scale wastes no levels, and is what the paper's
    experiments use. A single bit leaves no level for 0: l_i / s is -1 or +1, and the bound does not hold.

    Error feedback suits it only where the error is shorter than the upload: with many bits, or small buckets.

    Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017,
    section 3.1 and lemma 3.1; buckets and the scale by the maximum in section 4.
    """

    name: Literal["quantize"] = "quantize"
    bits: int = Field(4, ge=1, le=8, description="bits an entry takes on the wire, its sign among them")
    norm: Literal["l2", "max"] = Field("max", description="scale of a bucket: its l2 norm, or its largest magnitude")
    bucket: int | None = Field(None, ge=1, description="entries that share a scale; null: those of a whole tensor")
    error_feedback: bool = Field(False, description="add the rounding error to the client's next upload")

    @property
    def feeds_back(self) -> bool:
        return self.error_feedback

    @property
    def packs(self) -> bool:
        return True

    @property
    def levels(self) -> float:
        """s, the largest level."""
        return max(2**self.bits - 2, 1) / 2

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        packed, scales = {}, {}
        for i, (name, value) in enumerate(values.items()):
            buckets = self._buckets(value.reshape(-1))
            scale = torch.linalg.vector_norm(buckets, ORDERS[self.norm], dim=1, keepdim=True)
            place = self.levels + self.levels * (buckets / scale.clamp(min=torch.finfo(scale.dtype).tiny))
            low = place.floor()
            # Compared with the remainder, not added to the place: an entry that is on a level must never leave it.
            up = keys.uniform(keys.fold(key, i), tuple(place.shape)) < place - low
            codes = (low + up).clamp(0, 2 * self.levels)
            packed[name] = pack(codes.reshape(-1)[: value.numel()], self.bits)
            scales[name] = scale.reshape(-1)
        return packed, scales

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        return tree.map(self._read, carried, side, like)

    def _read(self, words: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        levels = unpack(words, self.bits, like.numel()).to(like.dtype) - self.levels
        buckets = self._buckets(levels) * (scale / self.levels)[:, None]
        return buckets.reshape(-1)[: like.numel()].reshape(like.shape)

    def _buckets(self, flat: Tensor) -> Tensor:
        """``flat`` as ``[buckets, entries]``, padded with 0 at the end."""
        size = self.bucket or flat.numel()
        return pad(flat, (0, -flat.numel() % size)).reshape(-1, size)
