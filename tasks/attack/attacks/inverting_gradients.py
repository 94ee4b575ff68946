"""Inverting gradients: the direction of the update, a prior for images, and signed Adam."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, vmap

from tasks import tree
from tasks.attack import label_leak
from tasks.attack.attacks.attack import Inversion
from tasks.attack.case import Case
from tasks.attack.guesses import Reconstruction
from tasks.tree import Tree

DROPS = (3 / 8, 5 / 8, 7 / 8)
"""When the step is divided by ten, as shares of the search."""


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
    assumes: ClassVar[str] = "the number of samples and of local steps"
    lr: float = Field(0.1, gt=0, description="first step of Adam, in units of the data's range")
    tv: float = Field(1e-3, ge=0, description="weight of the total variation (alpha)")
    restarts: int = Field(4, ge=1, description="random starts, searched side by side; they share the budget")
    labels: Literal["inferred", "given"] = Field("inferred", description="read off the last layer, or assumed known")
    local_steps: Literal["simulated", "ignored"] = Field(
        "simulated", description="whether the client's local steps are repeated, or its update taken for one gradient"
    )

    @property
    def told_labels(self) -> bool:
        return self.labels == "given"

    def obstacle(self, case: Case) -> str | None:
        found = label_leak.labels(case)
        return super().obstacle(case) or (found if isinstance(found, str) else None)

    def guess(self, case: Case) -> Reconstruction:
        order = case.order if self.local_steps == "simulated" else (torch.arange(case.context.samples),)
        y = self._labels(case)

        def mismatch(x: Tensor, y: Tensor) -> Tensor:
            return 1.0 - cosine(case.simulate(x, y, order), case.delta)

        def objective(x: Tensor, y: Tensor) -> Tensor:
            return mismatch(x, y) + self.tv * self._variation(case, x)

        iterations = max(1, case.budget // (self.restarts * len(order)))
        x = self._search(case, vmap(grad(objective)), y, iterations)
        with torch.no_grad():
            left = vmap(mismatch)(x, y).nan_to_num(nan=2.0)
        best = int(left.argmin())
        return Reconstruction(case, x[best], y[best], iterations * self.restarts * len(order), float(left[best]))

    def _labels(self, case: Case) -> Tensor:
        """Labels ``[restarts, samples]``; which of them share a batch is guessed anew for each start."""
        y, rng = label_leak.labels(case), case.generator(self.name, "labels")
        return torch.stack([y[torch.from_numpy(rng.permutation(len(y)))] for _ in range(self.restarts)])

    def _search(self, case: Case, slope, y: Tensor, iterations: int) -> Tensor:
        """Signed Adam from random starts; ``[restarts, samples, *shape]``."""
        low, high = case.data.range or (-torch.inf, torch.inf)
        step = self.lr * (high - low if case.data.range else 1.0)
        x = case.noise(y.numel(), self.name).reshape(*y.shape, *case.data.shape)
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(1, iterations + 1):
            # Where no simulated gradient is left, its direction is undefined: stay, do not spread NaN.
            sign = slope(x, y).nan_to_num(nan=0.0).sign()
            mean, square = 0.9 * mean + 0.1 * sign, 0.999 * square + 0.001 * sign.square()
            rate = step * 0.1 ** sum(i > drop * iterations for drop in DROPS)
            move = (mean / (1 - 0.9**i)) / ((square / (1 - 0.999**i)).sqrt() + 1e-8)
            x = (x - rate * move).clamp(low, high)
        return x

    def _variation(self, case: Case, x: Tensor) -> Tensor:
        if case.data.kind != "image":
            return x.new_zeros(())
        span = case.data.range[1] - case.data.range[0] if case.data.range else 1.0
        return total_variation(x) / span


def cosine(a: Tree, b: Tree) -> Tensor:
    """The cosine of the angle between two trees, all their entries taken as one vector; 0 where one of them is 0."""
    return tree.dot(a, b) / (tree.norm(a) * tree.norm(b)).clamp(min=1e-30)


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down and across, of ``x`` ``[..., height, width]``."""
    down, across = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return sum(part.abs().mean() for part in (down, across) if part.numel())
