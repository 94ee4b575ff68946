"""Every client's pictures come from another kind of camera."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.partition.skews.distortion import Distortion, Range


class Domain(Distortion):
    """Each client's images are of one of a few domains with a contrast, brightness and colour of their own.

    x' = clip(1/2 + s * c * g_channel * (x - 1/2) + b, 0, 1), where domain 0 is the data as they are and every other
    domain draws a contrast c and channel gains g in 1 +- strength / 2 and a brightness b in +- strength / 4. The sign s
    is -1 (a negative) in domains 1, 3, ... if ``invert``. With strength 0 and no inversion nothing changes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["domain"] = "domain"
    domains: int = Field(4, ge=1, le=1000, description="domains that the clients are dealt to")
    strength: float = Field(0.5, ge=0, le=1, description="how far the domains lie apart")
    invert: bool = Field(True, description="every second domain is a negative")

    def draw(self, clients: int, channels: int, rng: np.random.Generator) -> np.ndarray:
        half = self.strength / 2
        gain = rng.uniform(1 - half, 1 + half, (self.domains, 1)) * rng.uniform(
            1 - half, 1 + half, (self.domains, channels)
        )
        gain[1::2] *= -1.0 if self.invert else 1.0
        shift = rng.uniform(-half / 2, half / 2, (self.domains, 1))
        gain[0], shift[0] = 1.0, 0.0
        return np.concatenate([gain, shift], axis=1)[rng.permutation(clients) % self.domains]

    def apply(self, x: np.ndarray, mark: np.ndarray, bounds: Range, rng: np.random.Generator) -> np.ndarray:
        gain, shift = mark[:, :-1, None, None], mark[:, -1, None, None, None]
        return np.clip((x - 0.5) * gain + (0.5 + shift), 0.0, 1.0).astype(np.float32)
