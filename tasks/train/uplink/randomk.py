"""Random entries, named by a seed."""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from tasks import keys
from tasks.train.uplink.sparse import Sparse, scatter
from tasks.tree import Tree


class RandomK(Sparse):
    """Sends k random entries of each tensor. Their indices follow from a seed of 8 bytes, so none are sent.

    C(u)_i = s u_i if i is among the k drawn, else 0;   s = d/k if unbiased, else 1

    With s = d/k, E C(u) = u and E ||C(u) - u||^2 = (d/k - 1) ||u||^2. With s = 1, E ||C(u) - u||^2 = (1 - k/d) ||u||^2.
    With density 1 it is the identity.

    Scaled up AND with error feedback is refused: for d > 2k the scaled error is longer than the message itself, so
    what is fed back would grow from round to round.

    Source: Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1; the scaled form is
    Wangni et al., "Gradient Sparsification for Communication-Efficient Distributed Optimization", NeurIPS 2018, with
    equal probabilities.
    """

    name: Literal["randomk"] = "randomk"
    unbiased: bool = Field(False, description="scale what is sent by d / k, so that its mean is the upload")

    @model_validator(mode="after")
    def _one_remedy(self) -> "RandomK":
        if self.unbiased and self.error_feedback:
            raise ValueError(
                "`unbiased` and `error_feedback` exclude each other: scaled by d / k, the error exceeds the message "
                "and feeding it back diverges; set one of them to false"
            )
        return self

    def encode(self, values: Tree, key: Tensor) -> tuple[Tree, Tree]:
        thinned, carried = self.split(values)
        for name, index in self._drawn(thinned, key).items():
            scale = values[name].numel() / len(index) if self.unbiased else 1.0
            carried[name] = values[name].reshape(-1).gather(0, index) * scale
        return carried, {"seed": key}

    def decode(self, carried: Tree, side: Tree, like: Tree) -> Tree:
        drawn = self._drawn(self.split(like)[0], side["seed"])
        return {n: scatter(carried[n], drawn[n], v) if n in drawn else carried[n] for n, v in like.items()}

    def _drawn(self, values: Tree, seed: Tensor) -> Tree:
        """The positions ``[k]`` of each tensor: those of the k largest of d random numbers, a uniform subset."""
        return {
            name: keys.bits(keys.fold(seed, i), (value.numel(),)).topk(self.kept(value.numel())).indices
            for i, (name, value) in enumerate(values.items())
        }
