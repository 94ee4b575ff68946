"""How an upload is brought within its clip norm: as a whole, or tensor by tensor within bounds that make it up."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import tree
from tasks.config import Config, one_of
from tasks.train.uplink.clip import clip
from tasks.tree import Tree


class Whole(Config):
    """One length for the upload as a whole.

    u <- u min(1, C / ||u||)

    Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, section 2.1, flat
    clipping.
    """

    name: Literal["whole"] = "whole"

    def clip(self, upload: Tree, norm: float | Tensor) -> Tree:
        """``upload`` no longer than ``norm``."""
        return clip(upload, norm)

    def fits(self, upload: Tree, norm: float | Tensor) -> Tensor:
        """Whether ``upload`` would be left as it is, a boolean scalar."""
        return tree.norm(upload) <= norm


class Layers(Config):
    """A bound for every tensor of the upload, such that together they allow for the clip norm and no more."""

    normalise: bool = Field(
        False,
        description="scale every tensor of an upload that is longer than C to exactly its bound, small ones up, as the "
        "authors' code does",
    )

    def shares(self, upload: Tree) -> dict[str, float]:
        """Each tensor's bound over the clip norm, C_h / C; their squares add up to 1."""
        raise NotImplementedError

    def clip(self, upload: Tree, norm: float | Tensor) -> Tree:
        """``upload`` no longer than ``norm``."""
        shares = self.shares(upload)
        if not self.normalise:
            return {name: clip({name: value}, norm * shares[name])[name] for name, value in upload.items()}
        fits = self.fits(upload, norm)
        lengths = {name: tree.norm({name: value}).clamp(min=1e-30) for name, value in upload.items()}
        return {n: torch.where(fits, v, v * (norm * shares[n] / lengths[n])) for n, v in upload.items()}

    def fits(self, upload: Tree, norm: float | Tensor) -> Tensor:
        """Whether ``upload`` would be left as it is, a boolean scalar."""
        if self.normalise:
            return tree.norm(upload) <= norm
        shares = self.shares(upload)
        return torch.stack([tree.norm({n: v}) <= norm * shares[n] for n, v in upload.items()]).all()


class Uniform(Layers):
    """The same bound for every tensor, so that one whose changes are long cannot use up the norm of all others.

    u_h <- u_h min(1, C_h / ||u_h||),   C_h = C / sqrt(H)   for H tensors

    The upload is no longer than C, so the noise that hides a client is that of ``whole``. With one tensor it is
    ``whole``.

    Source: "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025, algorithm 1 and
    definition 3 (uniform).
    """

    name: Literal["uniform"] = "uniform"

    def shares(self, upload: Tree) -> dict[str, float]:
        return dict.fromkeys(upload, 1 / math.sqrt(len(upload)))


class Dim(Layers):
    """A bound for every tensor in proportion to the root of its size, as the noise on it is.

    u_h <- u_h min(1, C_h / ||u_h||),   C_h = C sqrt(d_h / D)   for a tensor of d_h of the D entries

    The upload is no longer than C, so the noise that hides a client is that of ``whole``. With one tensor it is
    ``whole``; with tensors of equal size it is ``uniform``.

    Source: "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025, algorithm 1 and
    definition 3 (dim).
    """

    name: Literal["dim"] = "dim"

    def shares(self, upload: Tree) -> dict[str, float]:
        whole = sum(value.numel() for value in upload.values())
        return {name: math.sqrt(value.numel() / whole) for name, value in upload.items()}


Clipping = one_of(Whole, Uniform, Dim)
