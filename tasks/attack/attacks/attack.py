"""The one interface of all attacks: from what an attacker sees to guesses about what is private."""

from collections.abc import Iterator
from typing import ClassVar

import torch

from tasks.attack.case import Case, View
from tasks.attack.guesses import Guess, NotApplicable
from tasks.config import Config


class Attack(Config):
    """The base. An attack reads a :class:`~tasks.attack.case.View` and makes guesses; no private sample is in one."""

    needs_transcript: ClassVar[bool] = False
    """Whether it reads recorded messages, and so has to be repeated for every defence of messages."""

    assumes: ClassVar[str]
    """What the attacker is taken to know or have, beyond the public code and settings: a sentence for the report."""

    @property
    def told_labels(self) -> bool:
        """Whether the attacker is assumed to know the private labels."""
        return False

    def run(self, view: View) -> Iterator[Guess]:
        """The guesses, one by one as they are made."""
        raise NotImplementedError


class OnMessages(Attack):
    """An attack that takes the recorded messages one at a time."""

    needs_transcript: ClassVar[bool] = True

    def obstacle(self, case: Case) -> str | None:
        """Why it has no hold on this message, or None."""
        return None

    def guess(self, case: Case) -> Guess:
        """What it reads out of one message that holds finite numbers, not all of them 0."""
        raise NotImplementedError

    def run(self, view: View) -> Iterator[Guess]:
        for case in view.cases:
            reason = _unreadable(case) or self.obstacle(case)
            yield NotApplicable(case, reason) if reason else self.guess(case)


class Inversion(OnMessages):
    """An attack on messages that looks for the samples themselves."""

    def obstacle(self, case: Case) -> str | None:
        return "its samples are tokens, which cannot be searched by gradients" if case.data.kind == "text" else None


def _unreadable(case: Case) -> str | None:
    values = list(case.delta.values())
    if not case.context.samples or not case.context.steps:
        return "the client did no local step"
    if not all(bool(torch.isfinite(value).all()) for value in values):
        return "the message holds values that are not finite"
    if not any(bool(value.any()) for value in values):
        return "the message holds nothing but zeros"
    return None
