"""Trap weights: a linear first layer whose units each fire for few samples."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.attack import layers
from tasks.attack.attacks.attack import Family, Tampering
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction

SCALES = torch.linspace(0.2, 1.0, 17).tolist()


class TrapWeights(Tampering):
    """Sends a first layer whose rows are half negative and half a smaller image of that, and reads its gradient off.

    w = -|n| on one random half of the features, scale * |n| on the other, n ~ N(0, sigma^2);  x = dW_j / db_j

    A unit fires for the samples alone that are bright where it is positive. The smaller the scale, the fewer these are;
    unless it is given, it is the one for which most units are expected to fire for one of B samples alone, on samples
    of the attacker's own.

    Source: Boenisch et al., "When the Curious Abandon Honesty: Federated Learning Is Not Private", EuroS&P 2023,
    section 5 and algorithm 1.
    """

    name: Literal["trap_weights"] = "trap_weights"
    family: ClassVar[Family] = "analytics"
    assumes: ClassVar[str] = (
        "a server that may change the weights, the number of samples, and samples of the same distribution"
    )
    sigma: float = Field(0.5, gt=0, description="size of the weights")
    scale: float | None = Field(None, gt=0, le=1, description="positive over negative; null to choose it, paper 0.95")
    tolerance: float = Field(1e-3, gt=0, description="largest difference between rows that agree, in units of the data")

    def obstacle(self, case: Case) -> str | None:
        layer = layers.first(case, case.model)
        return super().obstacle(case) or (layer if isinstance(layer, str) else None)

    def tamper(self, case: Case) -> Case:
        layer = layers.first(case, case.model)
        rows, features = layer.weight.shape
        rng = case.generator(self.name)
        n = self.sigma * torch.from_numpy(rng.standard_normal((rows, features // 2))).abs().to(layer.weight)
        places = torch.from_numpy(rng.permuted(torch.arange(features).repeat(rows, 1).numpy(), axis=1))
        below, above = places[:, : features // 2], places[:, features // 2 : 2 * (features // 2)]

        def weights(scale: float) -> Tensor:
            return torch.zeros_like(layer.weight).scatter(1, below, -n).scatter(1, above, scale * n)

        scale = self.scale or max(SCALES, key=lambda scale: self._alone(case, weights(scale)))
        return case.sending(layer.put(case.model, weights(scale), torch.zeros_like(layer.bias)))

    def guess(self, case: Case) -> Reconstruction:
        rows, told = layers.candidates(layers.first(case, case.gradient), self.tolerance)
        return Reconstruction(case, layers.plausible(case, rows, told, self.tolerance), None, 0)

    def _alone(self, case: Case, weight: Tensor) -> float:
        """The expected number of units that fire for exactly one sample of the client's."""
        fires, samples = (case.public.x.flatten(1) @ weight.T > 0).double().mean(0), case.context.samples
        return float((samples * fires * (1 - fires) ** (samples - 1)).sum())
