"""Random features as the frozen encoder."""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.keys import generator
from tasks.partition.refine.encoder import Encode, Encoder


class RandomFeatures(Encoder):
    """Cosines of random projections: an encoder that depends on no data, only on the seed.

    z_j = sqrt(2 / p) cos(w_j x + b_j), with w_j ~ N(0, 1 / width^2) and b_j uniform in [0, 2 pi)

    As p grows, z(x) z(x') tends to the Gaussian kernel exp(-|x - x'|^2 / (2 width^2)).

    Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007, algorithm 1.
    """

    name: Literal["random_features"] = "random_features"
    reads_data: ClassVar[bool] = False
    components: int = Field(256, ge=1, description="features of a sample (p)")
    width: float = Field(3.0, gt=0, description="width of the kernel, a distance between samples that are alike")

    def fit(self, blocks: Callable[[], Iterator[np.ndarray]], inputs: int, key: int) -> Encode:
        rng = generator(key, "random features")
        weights = rng.standard_normal((inputs, self.components)) / self.width
        shift = rng.uniform(0.0, 2 * np.pi, self.components)
        return lambda x: np.sqrt(2 / self.components) * np.cos(x @ weights + shift)
