"""How many others a node talks to in a round, as the run goes on: when to spend what one may send.

With t the round, R their number and p = t / R the progress, so that p = 1 in the last round. Rates are expected numbers
of others, without the node itself; an ``end`` of null stands for all of them.

Source: Zhu et al., "A Single Merging Suffices: Recovering Server-based Learning Performance in Decentralized Learning",
arXiv:2507.06542, 2025 (ICLR 2026 as "On the Surprising Effectiveness of a Single Global Merging in Decentralized
Learning"), and the schedules of its authors' code.
"""

import math
from typing import Literal

from pydantic import Field

from tasks.config import Config, one_of

ROUNDING = 1e-9
"""0.9 + 0.05 is a little above 0.95, and the window must not be a round longer for it."""


class Fixed(Config):
    """The same rate in every round. With 0 all train alone; with all the others every round is an all-reduce."""

    name: Literal["fixed"] = "fixed"
    start: float | None = Field(0.2, ge=0, description="others a node hears in a round (r); null: all")

    def at(self, progress: float, most: int) -> float:
        """The rate at a ``progress`` in (0, 1] where there are ``most`` others."""
        return self._level(self.start, most)

    def _level(self, rate: float | None, most: int) -> float:
        return float(most) if rate is None else min(rate, float(most))


class Changing(Fixed):
    """What rates with a second level have in common."""

    end: float | None = Field(None, ge=0, description="the second rate; null: all")

    def at(self, progress: float, most: int) -> float:
        start, end = self._level(self.start, most), self._level(self.end, most)
        return start + (end - start) * self.share(progress)

    def share(self, progress: float) -> float:
        """How much of the second rate is in force, in [0, 1]."""
        raise NotImplementedError


class Truncate(Changing):
    """``start`` until the progress reaches ``point``, ``end`` from then on: a merge of all at the end.

    With the default the last hundredth of the rounds is dense; in runs of up to 100 rounds that is the last one alone.
    """

    name: Literal["truncate"] = "truncate"
    point: float = Field(0.991, gt=0, le=1, description="progress from which the second rate is in force")

    def share(self, progress: float) -> float:
        return float(progress >= self.point - ROUNDING)


class Window(Changing):
    """``end`` while point <= p < point + length, ``start`` before and after: the same budget, early or late."""

    name: Literal["window"] = "window"
    point: float = Field(0.9, ge=0, le=1, description="progress from which the second rate is in force")
    length: float = Field(0.05, ge=0, le=1, description="for how much of the run")

    def share(self, progress: float) -> float:
        return float(self.point - ROUNDING <= progress < self.point + self.length - ROUNDING)


class Linear(Changing):
    """From ``start`` to ``end`` along a line."""

    name: Literal["linear"] = "linear"

    def share(self, progress: float) -> float:
        return progress


class Cosine(Changing):
    """From ``start`` to ``end`` along half a cosine, slowly at either end."""

    name: Literal["cosine"] = "cosine"

    def share(self, progress: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * progress)


Rate = one_of(Fixed, Truncate, Window, Linear, Cosine)
