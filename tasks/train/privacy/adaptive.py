"""Central differential privacy whose clip norm follows the uploads."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks import keys
from tasks.train.privacy.central import Central
from tasks.train.privacy.mechanism import Sums
from tasks.train.privacy.noise import add_noise
from tasks.tree import Tree


class Adaptive(Central):
    """DP-FedAvg whose clip norm moves, privately, to a quantile of the uploads' norms.

    b_k = 1 if ||u_k|| <= C else 0
    b = (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / expected cohort + 1/2
    C <- C exp(-clip_lr (b - target_quantile))

    Each client sends its bit b_k beside its upload. Bit and upload are one Gaussian mechanism of noise multiplier z if
    the uploads get the larger z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2), so epsilon is that of ``gaussian`` with the
    same z. With ``clip_lr`` 0 it is ``gaussian`` with multiplier z_delta.

    Source: Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, algorithm 1 and
    theorem 1.
    """

    name: Literal["adaptive"] = "adaptive"
    target_quantile: float = Field(0.5, gt=0, lt=1, description="share of uploads that shall be left unclipped (gamma)")
    clip_lr: float = Field(0.2, ge=0, le=2, description="speed of the clip norm on the log scale (eta_C)")
    count_noise: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the noise on the sum of bits (sigma_b); null: cohort / 20, "
        "and no less than the noise multiplier",
    )

    def init(self) -> Tree:
        return {"clip_norm": torch.tensor(self.clip_norm)}

    def bound(self, state: Tree) -> Tensor:
        return state["clip_norm"]

    def clipped_at(self, state: Tree) -> float:
        return float(state["clip_norm"])

    def bit_noise(self, cohort: int) -> float:
        """sigma_b."""
        return self.count_noise or max(cohort / 20, self.noise_multiplier)

    def multiplier(self, cohort: int) -> float:
        """z_delta, in a form that also holds for z = 0."""
        return self.noise_multiplier / math.sqrt(1 - (self.noise_multiplier / (2 * self.bit_noise(cohort))) ** 2)

    def on_device(self, state: Tree, upload: Tree, key: Tensor) -> tuple[Tree, Tree]:
        clipped, _ = super().on_device(state, upload, key)
        return clipped, {"unclipped": self.clipping.fits(upload, self.bound(state))}

    def release(self, state: Tree, sums: Sums, cohort: int, key: Tensor) -> tuple[Sums, Tree]:
        released, _ = super().release(state, sums, cohort, keys.fold(key, 0))
        # Counted from 1/2, a bit moves the sum by 1/2 rather than 1: the sensitivity that z_delta allows for.
        centred = {"bits": sums.notes["unclipped"] - sums.count / 2}
        share = add_noise(centred, self.bit_noise(cohort), keys.fold(key, 1))["bits"] / cohort + 0.5
        return released, {"clip_norm": state["clip_norm"] * torch.exp(-self.clip_lr * (share - self.target_quantile))}

    def conflicts(self, weighting: str, sampling: str, cohort: int) -> Iterator[str]:
        yield from super().conflicts(weighting, sampling, cohort)
        if self.noise_multiplier >= 2 * self.bit_noise(cohort):
            yield (
                f"train.privacy.count_noise = {self.count_noise}: must be above noise_multiplier / 2 = "
                f"{self.noise_multiplier / 2:g}, or the bits alone would tell more than the whole round may"
            )
