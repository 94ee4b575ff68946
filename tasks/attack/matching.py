"""The search for samples whose simulated update matches the one received: by its square distance, or its direction."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from tasks import tree
from tasks.attack.case import Case
from tasks.tree import Tree

GAIN = 1e-12
DROPS = (3 / 8, 5 / 8, 7 / 8)
"""When the step of signed Adam is divided by ten, as shares of the search."""


class Found(NamedTuple):
    """Where a search ended: the unknowns, the objective there, and the gradient evaluations of the network."""

    unknowns: Tensor
    value: float
    evaluations: int


def square_mismatch(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """||g(x, y) - g||^2 summed over all parameters, in units of a gradient: DLG's objective (Zhu et al., eq. (4))."""
    difference = tree.subtract(case.simulate(x, y), case.delta)
    return tree.dot(difference, difference) / (case.context.lr * case.context.steps) ** 2


def lbfgs(objective: Callable[[Tensor], Tensor], start: Callable[[int], Tensor], cost: int, budget: int) -> Found:
    """The least of a function of a float64 vector that L-BFGS finds, restarted until ``budget`` is spent.

    Parameters
    ----------
    objective : the function, differentiable.
    start : where to begin the given attempt.
    cost : gradient evaluations of the network that one value and gradient of ``objective`` takes.
    budget : of such evaluations; at least one value is taken, and the last line search may end beyond it.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989, as SciPy has it.
    """
    from scipy.optimize import minimize

    both = grad_and_value(objective)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slope, value = both(torch.from_numpy(flat))
        if not torch.isfinite(slope).all():
            return 1e30, np.zeros_like(flat)
        return float(value), slope.numpy()

    spent, attempt, best = 0, 0, None
    while best is None or (spent + cost <= budget and best.value > GAIN):
        options = {"maxfun": max(1, (budget - spent) // cost), "maxiter": budget, "gtol": 1e-12, "ftol": 1e-14}
        result = minimize(evaluate, start(attempt).numpy(), jac=True, method="L-BFGS-B", options=options)
        spent += result.nfev * cost
        if best is None or result.fun < best.value:
            best = Found(torch.from_numpy(result.x), float(result.fun), 0)
        attempt += 1
    return best._replace(evaluations=spent)


def cosine(a: Tree, b: Tree) -> Tensor:
    """The cosine of the angle between two trees, all their entries taken as one vector; 0 where one of them is 0."""
    return tree.dot(a, b) / (tree.norm(a) * tree.norm(b)).clamp(min=1e-30)


def turn(case: Case, x: Tensor, y: Tensor, order: tuple[Tensor, ...]) -> Tensor:
    """1 - cos between the update simulated for ``x``, ``y`` and the one received: from 0 to 2, whatever their scale."""
    return 1.0 - cosine(case.simulate(x, y, order), case.delta)


def align(
    case: Case, start: Tensor, y: Tensor, order: tuple[Tensor, ...], lr: float, tv: float
) -> tuple[Found, Tensor]:
    """The samples that :func:`turn` and total variation are least for, by signed Adam from several starts.

    Parameters
    ----------
    start : samples ``[starts, samples, *shape]``; the starts are searched side by side and share the budget.
    y : their labels ``[starts, samples]``.
    order : the rows of the samples that each simulated local step uses.
    lr : the first step, in units of the data's range; x is kept within that range.
    tv : the weight of the total variation of images.

    Returns
    -------
    The samples of the start that matches best, by the direction alone, and its labels ``[samples]``.
    """
    low, high = case.data.range or (-torch.inf, torch.inf)
    span = high - low if case.data.range else 1.0

    def objective(x: Tensor, y: Tensor) -> Tensor:
        smooth = total_variation(x) / span if case.data.kind == "image" else 0.0
        return turn(case, x, y, order) + tv * smooth

    iterations = max(1, case.budget // (len(y) * len(order)))
    slope = vmap(grad(objective))
    x = signed_adam(lambda x: slope(x, y), start, lr * span, iterations, low, high)
    with torch.no_grad():
        left = vmap(lambda x, y: turn(case, x, y, order))(x, y).nan_to_num(nan=2.0)
    best = int(left.argmin())
    return Found(x[best], float(left[best]), iterations * len(y) * len(order)), y[best]


def signed_adam(
    slope: Callable[[Tensor], Tensor],
    x: Tensor,
    step: float,
    iterations: int,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> Tensor:
    """Adam on the sign of the gradient ``slope``, with the step divided by ten at :data:`DROPS`, within bounds.

    Source: Geiping et al., "Inverting Gradients", NeurIPS 2020, section 4; Kingma and Ba, "Adam", ICLR 2015.
    """
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(1, iterations + 1):
        # Where no simulated gradient is left, its direction is undefined: stay, do not spread NaN.
        sign = slope(x).nan_to_num(nan=0.0).sign()
        mean, square = 0.9 * mean + 0.1 * sign, 0.999 * square + 0.001 * sign.square()
        rate = step * 0.1 ** sum(i > drop * iterations for drop in DROPS)
        move = (mean / (1 - 0.9**i)) / ((square / (1 - 0.999**i)).sqrt() + 1e-8)
        x = (x - rate * move).clamp(low, high)
    return x


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down and across, of ``x`` ``[..., height, width]``."""
    down, across = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return sum(part.abs().mean() for part in (down, across) if part.numel())
