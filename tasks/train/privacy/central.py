"""Differential privacy that a trusted server adds to the sum of a round."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.config import Config
from tasks.train.privacy.accountant import at_scale, central
from tasks.train.privacy.mechanism import Participation, Sums
from tasks.train.privacy.noise import Noised, add_noise
from tasks.tree import Tree


class Scale(Config):
    """A population larger than the run's, to say what the same training would cost there."""

    cohort: int = Field(ge=1, description="expected clients a round (S)")
    population: int = Field(ge=1, description="clients (K)")


class Central(Noised):
    """Clips every upload, and adds noise to their sum before anything else sees it.

    An upload is clipped on the device, so that the codecs work on what will count, and AGAIN on arrival: error feedback
    and unbiased codecs lengthen a message, and the noise hides a client only if what the server adds up is bounded. The
    sum is divided by the expected size of the cohort, as the true one would give away who took part.
    """

    accounting: Literal["pld", "rdp"] = Field(
        "pld",
        description="how Poisson cohorts are accounted: by privacy loss distributions, or by the Renyi divergences of "
        "most papers, which are looser",
    )
    extrapolate_to: Scale | None = Field(
        None,
        description="also report the epsilon EXTRAPOLATED to this population, which assumes the same accuracy there",
    )

    def bound(self, state: Tree) -> float | Tensor:
        """The clip norm in force."""
        return self.clip_norm

    def multiplier(self, cohort: int) -> float:
        """The standard deviation of the noise on the sum of uploads, over the clip norm."""
        return self.noise_multiplier

    def on_device(self, state: Tree, upload: Tree, key: Tensor) -> tuple[Tree, Tree]:
        return self.clipping.clip(upload, self.bound(state)), {}

    def on_arrival(self, state: Tree, upload: Tree) -> Tree:
        return self.clipping.clip(upload, self.bound(state))

    def release(self, state: Tree, sums: Sums, cohort: int, key: Tensor) -> tuple[Sums, Tree]:
        total = add_noise(sums.total, self.multiplier(cohort) * self.bound(state) * sums.heaviest, key)
        return Sums(total, {}, torch.full_like(sums.weight, cohort), cohort), state

    def epsilon(self, participation: Participation) -> float | None:
        if not self.noise_multiplier:
            return None
        delta = self.target_delta(participation.population)
        return central(self.noise_multiplier, delta, participation, self.accounting)

    def extrapolated(self, participation: Participation) -> float | None:
        if not (self.noise_multiplier and self.extrapolate_to) or participation.exposure is not None:
            return None
        cohort, population = self.extrapolate_to.cohort, self.extrapolate_to.population
        delta = self.target_delta(population)
        return at_scale(self.noise_multiplier, delta, participation, cohort, population, self.accounting)
