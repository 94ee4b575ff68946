"""How the local learning rate changes from round to round, as a factor of the configured one."""

import math
from typing import Literal

from pydantic import Field

from tasks.config import Config, one_of


class Constant(Config):
    """The same rate in every round."""

    name: Literal["constant"] = "constant"

    def factor(self, round_: int, rounds: int) -> float:
        """The factor in round ``round_`` (from 0) of ``rounds``."""
        return 1.0


class Exponential(Config):
    """factor = decay ^ round."""

    name: Literal["exponential"] = "exponential"
    decay: float = Field(0.99, gt=0, le=1, description="factor from one round to the next")

    def factor(self, round_: int, rounds: int) -> float:
        return self.decay**round_


class Step(Config):
    """factor = decay ^ floor(round / every)."""

    name: Literal["step"] = "step"
    every: int = Field(10, ge=1, description="rounds between two drops")
    decay: float = Field(0.5, gt=0, le=1, description="factor of each drop")

    def factor(self, round_: int, rounds: int) -> float:
        return self.decay ** (round_ // self.every)


class Cosine(Config):
    """factor = floor + (1 - floor) (1 + cos(pi round / rounds)) / 2, after a linear warm-up.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. (5).
    """

    name: Literal["cosine"] = "cosine"
    warmup: int = Field(0, ge=0, description="rounds of linear warm-up")
    floor: float = Field(0.0, ge=0, le=1, description="factor reached after the last round")

    def factor(self, round_: int, rounds: int) -> float:
        if round_ < self.warmup:
            return (round_ + 1) / self.warmup
        passed = (round_ - self.warmup) / max(rounds - self.warmup, 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(passed, 1.0))) / 2


class Hold(Config):
    """factor = 1 for ``hold`` rounds, then decay ^ ((round - hold) / every), without jumps.

    Source: "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025, the schedule of
    its server.
    """

    name: Literal["hold"] = "hold"
    hold: int = Field(750, ge=0, description="rounds at the full rate")
    decay: float = Field(0.6, gt=0, le=1, description="factor of each `every` rounds after that; 1 for a constant rate")
    every: int = Field(750, ge=1, description="rounds over which the rate falls by `decay`")

    def factor(self, round_: int, rounds: int) -> float:
        return self.decay ** (max(round_ - self.hold, 0) / self.every)


LearningRate = one_of(Constant, Exponential, Step, Cosine, Hold)
