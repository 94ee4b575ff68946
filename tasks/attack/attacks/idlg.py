"""Improved deep leakage from gradients: the label first, then the sample."""

from typing import ClassVar, Literal

from torch import Tensor

from tasks.attack import label_leak
from tasks.attack.attacks.attack import Family, Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.attack.matching import lbfgs, square_mismatch


class IDLG(Inversion):
    """Reads the label of a single sample off the signs of the last layer's gradient, then searches the sample.

    min over x of || g(x, y) - g ||^2,  y the one class whose entry of the last bias' gradient is negative

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, section 2 and algorithm 1.
    """

    name: Literal["idlg"] = "idlg"
    family: ClassVar[Family] = "optimisation"
    assumes: ClassVar[str] = "the number of samples"

    def obstacle(self, case: Case) -> str | None:
        if case.context.samples != 1:
            return f"it is made for a client with one sample, this one has {case.context.samples}"
        found = label_leak.labels(case)
        return super().obstacle(case) or (found if isinstance(found, str) else None)

    def guess(self, case: Case) -> Reconstruction:
        exact, shape, y = case.precise(), (1, *case.data.shape), label_leak.labels(case)

        def mismatch(unknowns: Tensor) -> Tensor:
            return square_mismatch(exact, unknowns.reshape(shape), y)

        def start(attempt: int) -> Tensor:
            return case.noise(1, "idlg", str(attempt)).double().flatten()

        found = lbfgs(mismatch, start, len(case.order), case.budget)
        return Reconstruction(case, found.unknowns.reshape(shape).float(), y, found.evaluations, found.value)
