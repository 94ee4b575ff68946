"""What an attack comes back with: a guess about something private, for :mod:`tasks.attack.scoring` to judge."""

from dataclasses import dataclass

from torch import Tensor

from tasks.attack.case import Case


@dataclass(frozen=True)
class Reconstruction:
    """Samples read out of a message: ``x`` ``[found, *shape]``, ``y`` ``[found]`` or None where labels were not sought.

    ``mismatch`` is what is left of the attack's own objective, by which it chose among restarts; None without one.
    ``evaluations`` counts gradients of the network: one a local step of a simulated client.
    """

    case: Case
    x: Tensor
    y: Tensor | None
    evaluations: int
    mismatch: float | None = None


@dataclass(frozen=True)
class Labels:
    """Labels read out of a message, in no order: ``y`` ``[samples]``."""

    case: Case
    y: Tensor
    evaluations: int = 0


@dataclass(frozen=True)
class Suspicion:
    """How likely each candidate is to have been trained on, by the ``rule`` that says so: ``scores`` ``[candidates]``,
    larger for likelier."""

    rule: str
    scores: Tensor
    evaluations: int


@dataclass(frozen=True)
class NotApplicable:
    """The attack has no hold on this message, and why."""

    case: Case
    reason: str


@dataclass(frozen=True)
class Declined:
    """The client sent nothing that could be attacked, and why: a defence that worked.

    ``infers``: whether the attack was after something about the samples, not after the samples.
    """

    case: Case
    reason: str
    infers: bool = False


Guess = Reconstruction | Labels | Suspicion | NotApplicable | Declined
