"""The clients' machines and links on the virtual clock: a round's seconds, from its real bytes and real work."""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from tasks import keys
from tasks.config import Config, one_of


class Speeds(NamedTuple):
    """What some clients can do, each ``[clients]``: samples a second, bytes a second each way, seconds of latency."""

    compute: np.ndarray
    download: np.ndarray
    upload: np.ndarray
    latency: np.ndarray

    def seconds(self, samples: np.ndarray, bytes_down: np.ndarray, bytes_up: np.ndarray) -> np.ndarray:
        """From dispatch to arrival: two latencies, the download, the work on ``samples`` in all, the upload."""
        return 2 * self.latency + bytes_down / self.download + samples / self.compute + bytes_up / self.upload


class UniformDevices(Config):
    """Every client has the same machine and link."""

    name: Literal["uniform"] = "uniform"
    samples_per_second: float = Field(500.0, gt=0, description="training speed")
    download: float = Field(20.0, gt=0, description="megabits a second to the client")
    upload: float = Field(5.0, gt=0, description="megabits a second from the client")
    latency: float = Field(0.05, ge=0, description="seconds, each way")

    def speeds(self, clients: np.ndarray, seed: int) -> Speeds:
        """The speeds of ``clients``, a function of each client's number and the seed alone."""
        ones = np.ones(len(clients))
        byte = 1e6 / 8
        return Speeds(
            self.samples_per_second * ones, self.download * byte * ones, self.upload * byte * ones, self.latency * ones
        )


class LognormalDevices(UniformDevices):
    """Speeds and links differ between clients: each figure is multiplied by exp(spread * normal), drawn once."""

    name: Literal["lognormal"] = "lognormal"
    spread: float = Field(0.5, ge=0, description="standard deviation of the logarithm")

    def speeds(self, clients: np.ndarray, seed: int) -> Speeds:
        """The speeds of ``clients``, a function of each client's number and the seed alone."""
        base = super().speeds(clients, seed)
        own = keys.each(keys.derive(seed, "devices"), clients)
        factors = np.exp(self.spread * _normals(own, 3))
        return Speeds(base.compute * factors[0], base.download * factors[1], base.upload * factors[2], base.latency)


def _normals(own: np.ndarray, count: int) -> np.ndarray:
    """``count`` rows of standard normal values, one column a key."""
    from scipy.special import ndtri

    fractions = (keys.shuffles(own, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ndtri(np.clip(fractions, 2.0**-53, None)).T


Devices = one_of(UniformDevices, LognormalDevices)
