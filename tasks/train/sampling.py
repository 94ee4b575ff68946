"""Who takes part in a round."""

from typing import ClassVar, Literal

import numpy as np

from tasks.config import Config, one_of


class UniformSampling(Config):
    """A cohort of fixed size, every client with equal chance, without replacement."""

    name: Literal["uniform"] = "uniform"
    poisson: ClassVar[bool] = False

    def draw(self, sizes: np.ndarray, cohort: int, rng: np.random.Generator) -> np.ndarray:
        """The clients of a round, in ascending order. ``sizes`` ``[clients]`` are their numbers of samples."""
        return np.sort(rng.choice(len(sizes), cohort, replace=False, shuffle=False))


class SizeSampling(Config):
    """A cohort of fixed size, drawn without replacement with chances in proportion to the number of samples.

    Combine with ``weighting: uniform``, or large clients count twice.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2 (sampling scheme).
    """

    name: Literal["by_size"] = "by_size"
    poisson: ClassVar[bool] = False

    def draw(self, sizes: np.ndarray, cohort: int, rng: np.random.Generator) -> np.ndarray:
        """The clients of a round, in ascending order."""
        return np.sort(rng.choice(len(sizes), cohort, replace=False, shuffle=False, p=sizes / sizes.sum()))


class PoissonSampling(Config):
    """Every client by its own coin with chance cohort / clients, so the size of the cohort varies.

    The sampling that the tightest privacy accounting assumes; a round may have no client at all.
    """

    name: Literal["poisson"] = "poisson"
    poisson: ClassVar[bool] = True

    def draw(self, sizes: np.ndarray, cohort: int, rng: np.random.Generator) -> np.ndarray:
        """The clients of a round, in ascending order: their number first, which is binomial, then who they are."""
        number = rng.binomial(len(sizes), cohort / len(sizes))
        return np.sort(rng.choice(len(sizes), number, replace=False, shuffle=False))


Sampling = one_of(UniformSampling, SizeSampling, PoissonSampling)
