"""Every client holds the camera differently."""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tasks.partition.skews.distortion import Distortion, Range


class Rotation(Distortion):
    """Each client's images are turned by an angle of its own, counter-clockwise about the centre.

    The angles are dealt out in turn over the clients in random order; what turns in from outside the image is 0.
    Between pixels it is bilinear. With the one angle 0 nothing changes, to the last bit.

    Source: Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, section 5
    (rotated MNIST).
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["rotation"] = "rotation"
    angles: tuple[float, ...] = Field((0.0, 90.0, 180.0, 270.0), min_length=1, description="angles in degrees")

    def draw(self, clients: int, channels: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(self.angles)[rng.permutation(clients) % len(self.angles)]

    def apply(self, x: np.ndarray, mark: np.ndarray, bounds: Range, rng: np.random.Generator) -> np.ndarray:
        turned = np.flatnonzero(mark % 360.0)
        if not len(turned):
            return x
        angle = np.deg2rad(mark[turned])
        cos, sin, aspect = np.cos(angle), np.sin(angle), x.shape[2] / x.shape[3]
        # Where in the source each pixel comes from, in coordinates of -1..1, hence the sides' ratio.
        matrix = np.zeros((len(turned), 2, 3), np.float32)
        matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin * aspect, sin / aspect, cos
        source = torch.from_numpy(x[turned])
        grid = torch.nn.functional.affine_grid(torch.from_numpy(matrix), list(source.shape), align_corners=False)
        x = x.copy()
        x[turned] = torch.nn.functional.grid_sample(source, grid, align_corners=False).numpy()
        return x
