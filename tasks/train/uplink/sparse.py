"""What codecs that send only some entries of a tensor have in common."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from tasks.train.uplink.codec import Codec, Use
from tasks.tree import Tree


class Thinned(Codec):
    """Sends some of a tensor's d entries, more of them during a warm-up."""

    density: float = Field(0.1, gt=0, le=1, description="share k / d of the entries that are sent, at least one")
    dense_below: int = Field(0, ge=0, description="tensors of fewer dimensions (biases, norms) are sent whole")
    warmup: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.25, 0.0625, 0.015625, 0.004),
        description="densities of the warm-up, each for an equal part of its rounds; never below `density`",
    )
    warmup_rounds: int = Field(0, ge=0, description="rounds of warm-up")

    def at(self, round_: int) -> Self:
        if round_ > self.warmup_rounds or not self.warmup:
            return self
        density = self.warmup[(round_ - 1) * len(self.warmup) // self.warmup_rounds]
        return self.model_copy(update={"density": max(density, self.density)})

    def kept(self, entries: int) -> int:
        """How many of ``entries`` entries cross the wire."""
        raise NotImplementedError

    def split(self, values: Tree) -> tuple[Tree, Tree]:
        """Those tensors of which some entries are sent, and those that are sent whole."""
        thinned = {name: value for name, value in values.items() if value.dim() >= self.dense_below}
        return thinned, {name: value for name, value in values.items() if name not in thinned}

    def conflicts(self, before: Sequence[Codec], after: Sequence[Codec], use: Use) -> Iterator[str]:
        if self.warmup_rounds and (remembers := [codec.name for codec in after if codec.feeds_back]):
            yield (
                f"sends fewer entries after its warm-up, so {remembers[0]!r} behind it cannot remember an error for "
                "each; set warmup_rounds or that codec's error_feedback off"
            )


class Sparse(Thinned):
    """Keeps k of a tensor's d entries; the others arrive as 0."""

    k: int | None = Field(None, ge=1, description="number of entries kept, in place of `density`")
    error_feedback: bool = Field(True, description="add what was left out to the client's next upload")

    @property
    def feeds_back(self) -> bool:
        return self.error_feedback

    def kept(self, entries: int) -> int:
        return max(1, min(entries, self.k or round(self.density * entries)))


def scatter(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """A tensor like ``like`` with ``values`` ``[k]`` at the flat positions ``index`` ``[k]`` and 0 elsewhere."""
    return like.new_zeros(like.numel()).scatter(0, index, values.to(like.dtype)).reshape(like.shape)


def narrow(index: Tensor, entries: int) -> Tensor:
    """``index`` in the smallest integer that can count ``entries`` positions; 16 bits wrap around into the sign."""
    return index.to(torch.uint8 if entries <= 1 << 8 else torch.int16 if entries <= 1 << 16 else torch.int32)


def widen(index: Tensor) -> Tensor:
    """The int64 positions that :func:`narrow` was given."""
    return index.long() & 0xFFFF if index.dtype == torch.int16 else index.long()
