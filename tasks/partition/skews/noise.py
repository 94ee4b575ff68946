"""Every client's sensor is as noisy as it is."""

from typing import Literal

import numpy as np
from pydantic import Field

from tasks.partition.skews.distortion import Distortion, Range


class Noise(Distortion):
    """Gaussian noise whose variance grows over the clients: client i of N has the variance sigma * i / N, i = 1..N.

    The places 1..N are dealt out at random. Samples with bounds are clipped to them. With sigma = 0 nothing changes.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, section IV-B.
    """

    name: Literal["noise"] = "noise"
    sigma: float = Field(0.1, ge=0, le=100, description="variance of the noisiest client")

    def draw(self, clients: int, channels: int, rng: np.random.Generator) -> np.ndarray:
        return np.sqrt(self.sigma * (rng.permutation(clients) + 1) / clients)

    def apply(self, x: np.ndarray, mark: np.ndarray, bounds: Range, rng: np.random.Generator) -> np.ndarray:
        scale = mark.astype(np.float32).reshape(-1, *(1,) * (x.ndim - 1))
        noisy = x + scale * rng.standard_normal(x.shape, np.float32)
        return noisy if bounds is None else np.clip(noisy, *bounds)
