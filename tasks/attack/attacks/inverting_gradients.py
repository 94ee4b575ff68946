"""Inverting gradients: the direction of the update, a prior for images, and signed Adam."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.attack import label_leak
from tasks.attack.attacks.attack import Family, Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.attack.matching import align


class InvertingGradients(Inversion):
    """Searches samples whose simulated update points in the direction of the one received.

    min over x of 1 - <u(x), u> / (||u(x)|| ||u||) + tv * TV(x),  TV = mean |vertical| + mean |horizontal differences|

    u(x) is the update of a client that runs the public method on x, with its real number of local steps. Adam on the
    sign of the gradient, x kept within the range of the data, and of several random starts the one whose update matches
    best (by the cosine alone: the original is never seen). Without images there is no TV.

    Source: Geiping et al., "Inverting Gradients: How easy is it to break privacy in federated learning?", NeurIPS 2020,
    eq. (4) and section 6.2 for several local steps.
    """

    name: Literal["inverting_gradients"] = "inverting_gradients"
    family: ClassVar[Family] = "optimisation"
    assumes: ClassVar[str] = "the number of samples and of local steps"
    lr: float = Field(0.1, gt=0, description="first step of Adam, in units of the data's range")
    tv: float = Field(1e-3, ge=0, description="weight of the total variation (alpha)")
    restarts: int = Field(4, ge=1, description="random starts, searched side by side; they share the budget")
    labels: Literal["inferred", "given"] = Field("inferred", description="read off the last layer, or assumed known")
    local_steps: Literal["simulated", "ignored"] | Annotated[int, Field(ge=1)] = Field(
        "simulated",
        description="whether the client's local steps are repeated, or its update taken for one gradient; a number "
        "repeats so many steps, right or wrong",
    )

    @property
    def told_labels(self) -> bool:
        return self.labels == "given"

    def obstacle(self, case: Case) -> str | None:
        found = label_leak.labels(case)
        return super().obstacle(case) or (found if isinstance(found, str) else None)

    def guess(self, case: Case) -> Reconstruction:
        y = self._labels(case)
        start = case.noise(y.numel(), self.name).reshape(*y.shape, *case.data.shape)
        found, y = align(case, start, y, self._order(case), self.lr, self.tv)
        return Reconstruction(case, found.unknowns, y, found.evaluations, found.value)

    def _order(self, case: Case) -> tuple[Tensor, ...]:
        if self.local_steps == "ignored":
            return (torch.arange(case.context.samples),)
        return case.order if self.local_steps == "simulated" else case.presumed(self.local_steps)

    def _labels(self, case: Case) -> Tensor:
        """Labels ``[restarts, samples]``; which of them share a batch is guessed anew for each start."""
        y, rng = label_leak.labels(case), case.generator(self.name, "labels")
        return torch.stack([y[torch.from_numpy(rng.permutation(len(y)))] for _ in range(self.restarts)])
