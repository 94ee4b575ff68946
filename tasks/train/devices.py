"""The clients' machines and links on the virtual clock: a round's seconds, from its real bytes and real work."""

from typing import Literal, NamedTuple

import numpy as np
import torch
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
    jitter: float = Field(
        0.0, ge=0, description="how much the training speed of one client varies: standard deviation of its logarithm"
    )

    def speeds(self, clients: np.ndarray, seed: int, population: int) -> Speeds:
        """The usual speeds of ``clients`` of a ``population``, a function of each one's number and the seed alone."""
        ones = np.ones(len(clients))
        byte = 1e6 / 8
        return Speeds(
            self.samples_per_second * ones, self.download * byte * ones, self.upload * byte * ones, self.latency * ones
        )

    def varied(self, speeds: Speeds, clients: np.ndarray, turns: np.ndarray, seed: int) -> Speeds:
        """``speeds`` of ``clients`` as they are this time, in each one's turn ``[clients]``; turn 0 is as usual."""
        if not self.jitter:
            return speeds
        own = keys.each(keys.derive(seed, "jitter"), clients)
        own = keys.fold(torch.from_numpy(own), torch.from_numpy(turns)).numpy()
        return speeds._replace(compute=speeds.compute * np.exp(self.jitter * _normals(own, 1)[0] * (turns > 0)))


class LognormalDevices(UniformDevices):
    """Speeds and links differ between clients: each figure is multiplied by exp(spread * normal), drawn once."""

    name: Literal["lognormal"] = "lognormal"
    spread: float = Field(0.5, ge=0, description="standard deviation of the logarithm")

    def speeds(self, clients: np.ndarray, seed: int, population: int) -> Speeds:
        base = super().speeds(clients, seed, population)
        own = keys.each(keys.derive(seed, "devices"), clients)
        factors = np.exp(self.spread * _normals(own, 3))
        return Speeds(base.compute * factors[0], base.download * factors[1], base.upload * factors[2], base.latency)


class LinearDevices(UniformDevices):
    """Client i of M takes 1 - spread i / (M - 1) times as long as the first, for all that it does.

    Source: Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates", JMLR 24, 2023: F-80 is a spread of 0.8.
    """

    name: Literal["linear"] = "linear"
    spread: float = Field(0.8, ge=0, lt=1, description="share of the slowest client's time that the fastest saves")

    def speeds(self, clients: np.ndarray, seed: int, population: int) -> Speeds:
        base = super().speeds(clients, seed, population)
        times = 1 - self.spread * clients / max(population - 1, 1)
        return Speeds(base.compute / times, base.download / times, base.upload / times, base.latency * times)


class DrawnDevices(UniformDevices):
    """Each client's time for a sample is multiplied by a factor that is drawn once; links are alike."""

    least: float = Field(0.3, gt=0, description="smallest factor, for that of the fastest machine there is")

    def factors(self, own: np.ndarray) -> np.ndarray:
        """Each client's factor, from its key."""
        raise NotImplementedError

    def speeds(self, clients: np.ndarray, seed: int, population: int) -> Speeds:
        base = super().speeds(clients, seed, population)
        own = keys.each(keys.derive(seed, "devices"), clients)
        return base._replace(compute=base.compute / np.maximum(self.factors(own), self.least))


class NormalDevices(DrawnDevices):
    """Clients' times for a sample are normal around the mean: each factor is 1 + spread * normal.

    Source: Li et al., "FedCompass", ICLR 2024, section 5.1 (normal heterogeneity).
    """

    name: Literal["normal"] = "normal"
    spread: float = Field(0.3, ge=0, description="standard deviation over the mean (sigma / mu)")

    def factors(self, own: np.ndarray) -> np.ndarray:
        return 1 + self.spread * _normals(own, 1)[0]


class ExponentialDevices(DrawnDevices):
    """Clients' times for a sample are exponential: most machines are fast, and a few very slow.

    Source: Li et al., "FedCompass", ICLR 2024, section 5.1 (exponential heterogeneity).
    """

    name: Literal["exponential"] = "exponential"
    least: float = Field(0.1, gt=0, description="smallest factor, for that of the fastest machine there is")

    def factors(self, own: np.ndarray) -> np.ndarray:
        return -np.log1p(-_fractions(own, 1)[0])


def _fractions(own: np.ndarray, count: int) -> np.ndarray:
    """``count`` rows of values uniform in [0, 1), one column a key."""
    return ((keys.shuffles(own, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53).T


def _normals(own: np.ndarray, count: int) -> np.ndarray:
    """``count`` rows of standard normal values, one column a key."""
    from scipy.special import ndtri

    return ndtri(np.clip(_fractions(own, count), 2.0**-53, None))


Devices = one_of(UniformDevices, LognormalDevices, LinearDevices, NormalDevices, ExponentialDevices)
