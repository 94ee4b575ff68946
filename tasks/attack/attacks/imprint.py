"""Robbing the Fed: a layer of bins before the network, whose gradient keeps the samples apart."""

from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.attack import layers
from tasks.attack.attacks.attack import Family, Tampering
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.models import Network
from tasks.tree import Tree

BELOW = 10.0
"""Standard deviations below the mean at which the lowest bin begins, for all samples to be in one."""


class Imprint(Tampering):
    """Sends a network with one layer more, which sorts samples into bins, and subtracts the gradients of neighbours.

    x <- x + strength * mean over k of a_k,   a_k = relu(w . x - q_k),   q_1 < ... < q_K quantiles of w . x
    x_hat = (dW_k - dW_{k+1}) / (db_k - db_{k+1})

    dL/da_k is the same for all bins that a sample has passed, so that neighbours differ by the samples between their
    thresholds alone: one that is alone there is read off exactly, several give a mixture. With K bins of equal mass
    B (1 - 1/K)^(B - 1) of B samples are expected to be alone, whatever the network behind, its state and the labels.
    Exact for one step of SGD; over several the bins move while they are filled.

    Source: Fowl et al., "Robbing the Fed: Directly Obtaining Private Data in Federated Learning with Modified Models",
    ICLR 2022, section 3 and eq. (6), in the variant that adds to the sample.
    """

    name: Literal["imprint"] = "imprint"
    family: ClassVar[Family] = "analytics"
    assumes: ClassVar[str] = (
        "a server that may change the network, the number of samples, and samples of the same distribution"
    )
    bins: int = Field(500, ge=2, description="thresholds (K); more keep more samples apart")
    direction: Literal["random", "mean"] = Field(
        "random", description="what samples are sorted by: w, of unit variance"
    )
    quantiles: Literal["empirical", "normal", "laplace"] = Field(
        "empirical",
        description="where the thresholds are: at quantiles of the attacker's samples, or of a law that fits them",
    )
    strength: float = Field(0.1, gt=0, description="how far the layer moves a sample, in units of the data")
    gain: float = Field(
        1e-3,
        gt=0,
        description="size of its weights: small ones are rounded less, large ones move less over several steps",
    )

    def obstacle(self, case: Case) -> str | None:
        return super().obstacle(case) or (None if case.public else "it needs samples of its own to place its bins")

    def tamper(self, case: Case) -> Case:
        size = int(torch.Size(case.data.shape).numel())
        network = Network(Bins(case.network.module, size, self.bins))
        w, thresholds = self._thresholds(case, case.public.x.flatten(1).double())
        imprint = {
            "rows.weight": self.gain * w.repeat(self.bins, 1),
            "rows.bias": -self.gain * thresholds,
            "mix.weight": torch.full((1, self.bins), self.strength / (self.gain * self.bins)),
        }
        own = {f"network.{name}": value for name, value in (case.network.parameters | case.model).items()}
        return case.sending(
            {name: value.to(next(iter(own.values()))) for name, value in imprint.items()} | own, network
        )

    def guess(self, case: Case) -> Reconstruction:
        rows, weight = apart(case.delta)
        return Reconstruction(case, layers.plausible(case, rows, weight, 0.05), None, 0)

    def _thresholds(self, case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
        """The direction w ``[size]``, along which ``x`` has unit variance, and the thresholds ``[K]``."""
        drawn = torch.from_numpy(case.generator(self.name).standard_normal(x.shape[1]))
        w = drawn - drawn.mean() if self.direction == "random" else torch.ones_like(drawn)
        w = w / (x @ w).std().clamp(min=1e-12)
        z, levels = x @ w, torch.arange(1, self.bins).double() / self.bins
        if self.quantiles == "empirical":
            inner = torch.from_numpy(np.quantile(z.numpy(), levels.numpy()))
        elif self.quantiles == "normal":
            inner = z.mean() + torch.tensor([NormalDist().inv_cdf(float(level)) for level in levels])
        else:
            inner = z.mean() - (levels - 0.5).sign() * torch.log1p(-2 * (levels - 0.5).abs()) / 2**0.5
        return w, torch.cat([(z.mean() - BELOW).reshape(1), inner])


class Bins(nn.Module):
    """The network with the bins before it."""

    def __init__(self, network: nn.Module, size: int, bins: int):
        super().__init__()
        self.rows, self.mix, self.network = nn.Linear(size, bins), nn.Linear(bins, 1, bias=False), network

    def forward(self, x: Tensor) -> Tensor:
        shift = self.mix(torch.relu(self.rows(x.flatten(1))))
        return self.network(x + shift.reshape(-1, *[1] * (x.dim() - 1)))


def apart(delta: Tree) -> tuple[Tensor, Tensor]:
    """What lies between the thresholds, from the change of the ``rows``, and how strong each is: in float64, as the
    difference of neighbours is small. Bins in which nothing lies are left out."""
    noise = 16 * torch.finfo(delta["rows.bias"].dtype).eps
    rows = torch.cat([delta["rows.weight"], delta["rows.bias"][:, None]], 1).double()
    between = rows - torch.cat([rows[1:], torch.zeros_like(rows[:1])])
    strength = between[:, -1].abs()
    filled = strength > noise * rows[:, -1].abs().max()
    return between[filled, :-1] / between[filled, -1:], strength[filled]
