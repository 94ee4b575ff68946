"""A client that looks at what it is sent before it trains on it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad_and_value

from tasks import tree
from tasks.attack.defences.defence import Defence, Offer
from tasks.models import Network
from tasks.tree import Tree

ALIKE = 0.999
"""Cosine from which two rows are parallel; a mirrored row may miss its image by as much as this lacks of 1."""
FEW = 3
"""Entries of either sign that a row needs before its halves can be compared."""


class Validate(Defence):
    """The client stays out of a round whose model is not what it agreed to, or is shaped to give samples away.

    It refuses a network other than the agreed one; a first layer of which many rows are parallel (bins along one
    direction) or mirror images in themselves (trap weights); a last layer of zeros or of huge entries (fishing); and a
    model whose loss, or whose gradient, on its own samples is far beyond those of every model that it has seen. No
    bound is narrower than what a model that it has seen needs.

    Source: "Exploring the Vulnerabilities of Federated Learning: A Deep Dive into Gradient Inversion Attacks", IEEE
    TPAMI 2026, the third stage of its defence; the check for mirror images is made for the weights of Boenisch et al.,
    "When the Curious Abandon Honesty", EuroS&P 2023.
    """

    name: Literal["validate"] = "validate"
    parallel: float = Field(0.1, ge=0, le=1, description="largest share of first-layer rows parallel to another one")
    mirrored: float = Field(
        0.1, ge=0, le=1, description="largest share of first-layer rows with positive entries in proportion to the rest"
    )
    zeros: float = Field(0.5, ge=0, le=1, description="largest share of zeros among the weights of the last layer")
    largest: float = Field(20.0, gt=0, description="largest size of an entry of the last layer")
    growth: float = Field(
        20.0, ge=1, description="largest loss, and gradient, on the client's samples over those of models seen before"
    )

    def objection(self, offer: Offer) -> str | None:
        if _plan(offer.network) != _plan(offer.agreed):
            return "the network is not the one that was agreed on"
        if not all(bool(torch.isfinite(value).all()) for value in offer.model.values()):
            return "the model holds values that are not finite"
        if not offer.model.keys() <= offer.agreed.parameters.keys():
            return None  # what travels are not the network's own weights, and its shape says nothing
        bounds = {
            "the share of parallel rows in the first layer": self.parallel,
            "the share of mirrored rows in the first layer": self.mirrored,
            "the share of zeros in the last layer": self.zeros,
            "the largest entry of the last layer": self.largest,
        }
        found, seen = _shape(offer.agreed, offer.model), [_shape(offer.agreed, model) for model in offer.known]
        for what, bound in bounds.items():
            limit = max(bound, *(known[what] for known in seen))
            if found[what] > limit:
                return f"{what} is {found[what]:.3g}, beyond {limit:.3g}"
        found, seen = _fit(offer, offer.model), [_fit(offer, model) for model in offer.known]
        for what, value in found.items():
            limit = self.growth * max(known[what] for known in seen)
            if not value <= limit:
                return f"{what} on its own samples is {value:.3g}, beyond {limit:.3g}"
        return None

    @property
    def says(self) -> str:
        return "from a client that looks at what it is sent"


def _plan(network: Network) -> tuple:
    return repr(network.module), [(name, tuple(value.shape)) for name, value in network.parameters.items()]


def _shape(network: Network, model: Tree) -> dict[str, float]:
    """What the weights themselves show. The first and the last layer are those of the first and the last matrix."""
    ordered = [(name, model[name]) for name in network.parameters if name in model]
    matrices = [i for i, (_, value) in enumerate(ordered) if value.dim() > 1] or [0]
    first, last = ordered[matrices[0]][1], ordered[matrices[-1]][1]
    return {
        "the share of parallel rows in the first layer": parallel(first),
        "the share of mirrored rows in the first layer": mirrored(first),
        "the share of zeros in the last layer": float((last == 0).float().mean()),
        "the largest entry of the last layer": max(float(v.abs().max()) for _, v in ordered[matrices[-1] :]),
    }


def _fit(offer: Offer, model: Tree) -> dict[str, float]:
    """What the client's own samples show."""
    slope, loss = grad_and_value(lambda params: offer.network.losses(params, offer.x, offer.y).mean())(model)
    return {"the loss": float(loss), "the gradient": float(tree.norm(slope))}


def parallel(weight: Tensor) -> float:
    """The share of the rows of ``weight`` ``[rows, ...]`` that point the way of another row."""
    rows = torch.nn.functional.normalize(weight.double().flatten(1), dim=1)
    return float(((rows @ rows.T).fill_diagonal_(0.0) > ALIKE).any(1).double().mean())


def mirrored(weight: Tensor) -> float:
    """The share of the rows of ``weight`` whose positive entries are, up to order, a multiple of its negative ones."""
    return sum(_mirrors(row) for row in weight.double().flatten(1)) / len(weight)


def _mirrors(row: Tensor) -> bool:
    above, below = row[row > 0].sort().values, (-row[row < 0]).sort().values
    if len(above) != len(below) or len(above) < FEW:
        return False
    factor = above @ below / (below @ below)
    return bool((above - factor * below).abs().max() <= (1 - ALIKE) * above.max())
