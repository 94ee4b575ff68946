"""What the mechanisms that clip and add Gaussian noise have in common."""

from collections.abc import Iterator

from pydantic import Field
from torch import Tensor

from tasks import keys
from tasks.train.privacy.clipping import Clipping, Whole
from tasks.train.privacy.mechanism import Mechanism
from tasks.tree import Tree


def add_noise(values: Tree, deviation: float | Tensor, key: Tensor) -> Tree:
    """``values`` with independent N(0, deviation^2) on every entry: a pure function of ``key``."""
    return {
        name: value + (deviation * keys.normal(keys.fold(key, i), tuple(value.shape))).to(value.dtype)
        for i, (name, value) in enumerate(values.items())
    }


class Noised(Mechanism):
    """Clips and adds noise in proportion: one client changes the outcome by at most what the noise hides."""

    noise_multiplier: float = Field(1.0, ge=0, description="standard deviation of the noise over the clip norm (z)")
    clip_norm: float = Field(1.0, gt=0, description="greatest Euclidean norm of one client's upload (C)")
    clipping: Clipping = Field(Whole(), description="what is brought within the clip norm: the upload, or its tensors")
    delta: float | None = Field(
        None, gt=0, lt=1, description="chance that epsilon is exceeded; null: 1 / clients^1.1, and at most 1e-5"
    )

    def target_delta(self, population: int) -> float:
        return self.delta or min(population**-1.1, 1e-5)

    def clipped_at(self, state: Tree) -> float:
        return self.clip_norm

    def conflicts(self, weighting: str, sampling: str, cohort: int) -> Iterator[str]:
        if weighting != "uniform":
            yield (
                f"train.algorithm.weighting = {weighting!r}: must be 'uniform' with train.privacy.name = "
                f"{self.name!r}: the noise hides one clipped upload of weight 1, and a number of samples is private too"
            )
        if sampling not in ("uniform", "poisson"):
            yield (
                f"train.sampling.name = {sampling!r}: must be 'uniform' or 'poisson' with train.privacy.name = "
                f"{self.name!r}: chances that follow from the data tell about it, and no accountant covers them"
            )
