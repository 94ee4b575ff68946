"""Mean and covariance of samples that lie in several places, and how they are packed into a message."""

from typing import NamedTuple

import numpy as np
import torch


class Moments(NamedTuple):
    """Number, mean [p] and covariance [p, p] of some samples, all divided by n; float64."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> "Moments":
        z = z.astype(np.float64)
        mean = z.mean(0)
        return cls(len(z), mean, (z - mean).T @ (z - mean) / len(z))

    def __or__(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples together, exactly: a covariance within the parts and one between them.

        Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
        1979, eq. (2.1).
        """
        n = self.n + other.n
        p, q, apart = self.n / n, other.n / n, other.mean - self.mean
        covariance = p * self.covariance + q * other.covariance + p * q * np.outer(apart, apart)
        return Moments(n, self.mean + q * apart, covariance)


def stacked(rows: list[np.ndarray], count: int, width: int) -> torch.Tensor:
    """Rows as one float32 tensor [count, width], also where there is none."""
    return torch.from_numpy(np.array(rows, np.float32).reshape(count, width))


def square(triangle: torch.Tensor) -> np.ndarray:
    """The symmetric matrix [p, p], float64, of its upper triangle [p (p + 1) / 2]."""
    entries = triangle.double().numpy()
    p = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    full = np.zeros((p, p))
    full[np.triu_indices(p)] = entries
    return full + np.triu(full, 1).T
