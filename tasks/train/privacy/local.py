"""Local differential privacy."""

from typing import Literal

from torch import Tensor

from tasks.train.privacy.accountant import gaussian
from tasks.train.privacy.mechanism import Participation
from tasks.train.privacy.noise import Noised, add_noise
from tasks.tree import Tree


class Local(Noised):
    """Every device clips and noises its own message, so that nobody else has to be trusted, the server included.

    u <- u min(1, C / ||u||) + N(0, (z C)^2 I)

    Two messages of a client differ by at most 2 C before the noise, whatever its data, so one message is a Gaussian
    mechanism of noise multiplier z / 2, and n of them one of z / (2 sqrt(n)). Epsilon is that of the client that has
    sent most often, exactly; that a client sent anything is not hidden. What the codecs do afterwards costs nothing.

    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, section 12.1 (local model);
    Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, theorem 8.
    """

    name: Literal["local"] = "local"

    def on_device(self, state: Tree, upload: Tree, key: Tensor) -> tuple[Tree, Tree]:
        return add_noise(self.clipping.clip(upload, self.clip_norm), self.noise_multiplier * self.clip_norm, key), {}

    def epsilon(self, participation: Participation) -> float | None:
        if not self.noise_multiplier:
            return None
        delta = self.target_delta(participation.population)
        return gaussian(self.noise_multiplier / 2, participation.busiest, delta)
