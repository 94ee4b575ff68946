"""The search for samples whose simulated update matches the one received, by a quasi-Newton method."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value

from tasks import tree
from tasks.attack.case import Case

GAIN = 1e-12


class Found(NamedTuple):
    """Where the search ended: the unknowns, the objective there, and what it cost."""

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
