"""What every split is."""

import numpy as np

from tasks.config import Config

FIELD = "params.yaml: partition.split"
"""Where a refused split was named."""


class Division(Config):
    """The base of all splits."""

    def assign(
        self, y: np.ndarray, columns: dict[str, np.ndarray], clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The owner of every sample: int64 [n], in 0..clients - 1.

        Parameters: ``y`` int64 [n] the labels; ``columns`` other values [n] by name; ``rng`` the only randomness.
        A client may be left with nothing: the stage then moves samples to it.
        Raises ``Refused`` where the samples cannot be split so.
        """
        raise NotImplementedError

    def natural(self, y: np.ndarray, columns: dict[str, np.ndarray]) -> int:
        """The clients that the data themselves tell apart, where the split goes by what they tell."""
        raise NotImplementedError


def by_label(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The positions of all samples sorted by label, those of one label in random order: int64 [n]."""
    order = rng.permutation(len(y))
    return order[np.argsort(y[order], kind="stable")]


def dealt(clients: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The owners of ``count`` samples dealt to ``clients`` in turn, starting anywhere: int64 ``[count]``."""
    return np.resize(rng.permutation(clients), count) if count else np.empty(0, np.int64)


def shared_out(count: int, portions: np.ndarray) -> np.ndarray:
    """The owners of ``count`` samples in a row, by the ``portions`` ``[clients]`` of each: int64 ``[count]``."""
    ends = np.cumsum(portions)
    quantile = (np.arange(count) + 0.5) / count
    return np.searchsorted(ends / ends[-1], quantile, side="right")
