"""The one interface of all attacks: from what an attacker sees to guesses about what is private."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch

from tasks.attack.case import Ask, Case, View
from tasks.attack.guesses import Declined, Guess, NotApplicable
from tasks.config import Config, Refused

Family = Literal["optimisation", "generation", "analytics", "inference"]
"""How an attack comes by what it is after: it searches samples whose update matches, searches or trains a generator of
them, computes them in closed form, or infers something about them that is no sample."""


class Attack(Config):
    """The base. An attack reads a :class:`~tasks.attack.case.View` and makes guesses; no private sample is in one."""

    needs_transcript: ClassVar[bool] = False
    """Whether it reads recorded messages, and so has to be repeated for every defence of messages."""

    malicious: ClassVar[bool] = False
    """Whether it needs a server that does not keep to the protocol, and sends models of its own making."""

    family: ClassVar[Family]

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
            yield self.turned_down(case) or self.guess(case)

    def turned_down(self, case: Case) -> Guess | None:
        """What is to be said of a message on which it cannot even be tried."""
        if case.declined:
            return Declined(case, case.declined, self.family == "inference")
        reason = _unreadable(case) or self.obstacle(case)
        return NotApplicable(case, reason) if reason else None


class Inversion(OnMessages):
    """An attack on messages that looks for the samples themselves."""

    def obstacle(self, case: Case) -> str | None:
        return "its samples are tokens, which cannot be searched by gradients" if case.data.kind == "text" else None


class Tampering(Inversion):
    """An attack by a server that sends a model of its own making and reads what an honest client answers to it.

    The recorded message of that client is there too: the server had it before.
    """

    malicious: ClassVar[bool] = True

    def tamper(self, case: Case) -> Case:
        """The case with what it sends in place of the broadcast: see :meth:`~tasks.attack.case.Case.sending`."""
        raise NotImplementedError

    def strike(self, case: Case, ask: Ask) -> Guess:
        """What it gets out of the client behind ``case``. One that asks more than once overrides this."""
        try:
            answered = ask(self.tamper(case))
        except Refused as refused:
            return NotApplicable(case, f"the method does not run on the model that it would send ({refused.allowed})")
        return self.turned_down(answered) or self.guess(answered)

    def run(self, view: View) -> Iterator[Guess]:
        for case in view.cases:
            yield self.turned_down(case) or self.strike(case, view.ask)


def _unreadable(case: Case) -> str | None:
    values = list(case.delta.values())
    if not case.context.samples or not case.context.steps:
        return "the client did no local step"
    if not all(bool(torch.isfinite(value).all()) for value in values):
        return "the message holds values that are not finite"
    if not any(bool(value.any()) for value in values):
        return "the message holds nothing but zeros"
    return None
