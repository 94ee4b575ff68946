"""Deep leakage from gradients: samples and labels searched together."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from tasks.attack.attacks.attack import Family, Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.attack.matching import lbfgs, square_mismatch


class DLG(Inversion):
    """Searches samples x and soft labels s whose update is the one received, by L-BFGS from random starts.

    min over x, s of || g(x, softmax(s)) - g ||^2

    Restarted until the budget is spent; the start that matches best is kept. Made for smooth activations: on ReLU and
    max pooling the second derivatives that it needs are mostly 0.

    Source: Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019, eq. (4) and algorithm 1.
    """

    name: Literal["dlg"] = "dlg"
    family: ClassVar[Family] = "optimisation"
    assumes: ClassVar[str] = "the number of samples"

    def guess(self, case: Case) -> Reconstruction:
        exact, samples, classes = case.precise(), case.context.samples, case.data.classes
        shape = (samples, *case.data.shape)
        pixels = torch.Size(shape).numel()

        def mismatch(unknowns: Tensor) -> Tensor:
            x, s = unknowns[:pixels].reshape(shape), unknowns[pixels:].reshape(samples, classes)
            return square_mismatch(exact, x, s.softmax(-1))

        def start(attempt: int) -> Tensor:
            x = case.noise(samples, "dlg", str(attempt)).double()
            s = torch.from_numpy(case.generator("dlg labels", str(attempt)).standard_normal(samples * classes))
            return torch.cat([x.flatten(), s])

        found = lbfgs(mismatch, start, len(case.order), case.budget)
        x, s = found.unknowns[:pixels].reshape(shape), found.unknowns[pixels:].reshape(samples, classes)
        return Reconstruction(case, x.float(), s.argmax(-1), found.evaluations, found.value)
