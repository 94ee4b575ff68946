"""Randomness as a pure function of a key: the same key gives the same numbers on every device, stacked or alone.

A key is a 64-bit integer. On the host :func:`derive` names it by a path such as ``(seed, "batches", round, client)``.
Inside a client's step, where many clients run as one stacked tensor program, a key is an int64 scalar tensor, and
:func:`bits`, :func:`uniform`, :func:`normal` and :func:`rademacher` hash (key, counter) with integer arithmetic alone,
so that a draw depends neither on a generator's state nor on how many clients share the stack.

Source of the hash: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

KEY = torch.int64
GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def derive(seed: int, *path: int | str) -> int:
    """A key for ``path`` under ``seed``: a signed 64-bit integer, independent of every other path's."""
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A NumPy generator for ``path`` under ``seed``, for draws made once on the host."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path) % (1 << 64)))


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of an int64 tensor."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(MIX_2)
    return x ^ _shift(x, 31)


def fold(key: Tensor, number: int | Tensor) -> Tensor:
    """The key that ``key`` gives to ``number``: for the next step, the next layer, the next purpose."""
    if not isinstance(number, Tensor):
        number = torch.tensor(number, dtype=KEY, device=key.device)  # wraps around, which a Python integer does not
    step = number * _signed(GOLDEN) + 1
    return _mix(_mix(key + _signed(GOLDEN)) ^ step)


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Independent uniform int64 values of ``shape``. ``key`` is an int64 scalar tensor."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    return _mix(_mix(key + counter * _signed(GOLDEN))).reshape(shape)


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 values in [0, 1), multiples of 2**-24."""
    return _shift(bits(key, shape), 40).to(torch.float32) * 2.0**-24


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 values, by Box and Muller's transform, out to 8.57 standard deviations.

    The radius takes 53 bits: from the 24 of :func:`uniform` the tails would end at 5.77, and noise whose support ends
    is no longer differentially private at the deltas that large populations ask for.
    """
    above_zero = (_shift(bits(key, shape), 11) + 1).to(torch.float32) * 2.0**-53
    radius = torch.sqrt(-2.0 * torch.log(above_zero))
    return radius * torch.cos(2.0 * math.pi * uniform(fold(key, 1), shape))


def rademacher(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Float32 values of -1 or +1 with equal chance."""
    return 1.0 - 2.0 * _shift(bits(key, shape), 63).to(torch.float32)


def shuffles(keys: np.ndarray, length: int) -> np.ndarray:
    """One row of sort keys a client, for ordering its samples: argsort of a row is a uniform permutation.

    Parameters: ``keys`` int64 [clients]; ``length`` the longest client's number of samples.
    Returns: uint64 [clients, length]. Row i depends on ``keys[i]`` alone; a shorter call gives a prefix of it.
    """
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64)[:, None] + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        return _host_mix(_host_mix(x))


def each(key: int, numbers: np.ndarray) -> np.ndarray:
    """:func:`fold` of one host key with many ``numbers`` at once, as int64 ``[len(numbers)]``."""
    with np.errstate(over="ignore"):
        start = _host_mix(np.array([(key + GOLDEN) % (1 << 64)], np.uint64))
        return _host_mix(start ^ (numbers.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(1))).view(np.int64)


def _host_mix(x: np.ndarray) -> np.ndarray:
    """:func:`_mix` of uint64 values, which wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))
