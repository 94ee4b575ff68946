"""Clipping and Gaussian noise on the device."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from tasks.attack.defences.defence import Defence
from tasks.train.privacy.accountant import gaussian
from tasks.train.privacy.noise import add_noise
from tasks.train.uplink.clip import clip
from tasks.tree import Tree

DELTA = 1e-5


class Noise(Defence):
    """What a device with local differential privacy would have sent: clipped, then covered in Gaussian noise.

    delta <- delta * min(1, C / ||delta||) + N(0, (z C)^2)

    Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, on one client's update.
    """

    name: Literal["noise"] = "noise"
    clip_norm: float = Field(1.0, gt=0, description="greatest Euclidean norm of an update (C)")
    noise_multiplier: float = Field(1.0, ge=0, description="standard deviation of the noise over the clip norm (z)")

    def protect(self, delta: Tree, key: Tensor) -> Tree:
        return add_noise(clip(delta, self.clip_norm), self.noise_multiplier * self.clip_norm, key)

    def repeat(self, simulated: Tree, received: Tree) -> Tree:
        return clip(simulated, self.clip_norm)

    @property
    def says(self) -> str:
        noise = f"clip norm {self.clip_norm:g}, noise multiplier {self.noise_multiplier:g}"
        return f"behind DP noise ({noise}{self._price})"

    @property
    def _price(self) -> str:
        """Epsilon of one message. Two clipped updates differ by at most 2 C, so the multiplier that counts is z / 2."""
        if not self.noise_multiplier:
            return ""
        return f", epsilon {gaussian(self.noise_multiplier / 2, 1, DELTA):.3g} a message at delta {DELTA:g}"
