"""The two layers of a network from which a gradient is read in closed form, found by watching it run."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.attack.case import Case
from tasks.tree import Tree


class Linear(NamedTuple):
    """The parts of ``values`` (a gradient, an update, a model) that belong to the linear layer ``name`` with a bias."""

    weight: Tensor
    bias: Tensor
    name: str = ""

    def put(self, values: Tree, weight: Tensor, bias: Tensor) -> Tree:
        """``values`` with another ``weight`` and ``bias`` in this layer."""
        return values | {f"{self.name}.weight": weight, f"{self.name}.bias": bias}

    def without(self, values: Tree) -> Tree:
        """``values`` without this layer."""
        return {name: value for name, value in values.items() if name.rpartition(".")[0] != self.name}


class _Call(NamedTuple):
    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def first(case: Case, values: Tree) -> Linear | str:
    """The first layer with parameters, if it is linear in the sample itself; else the reason why not."""
    calls, x, _ = _watch(case)
    call = calls[0]
    name = type(call.module).__name__
    if not isinstance(call.module, nn.Linear):
        return f"the first layer with parameters is {name} `{call.name}`, not a linear layer of the sample"
    if call.input.shape != x.flatten(1).shape or not torch.equal(call.input, x.flatten(1)):
        return f"the first linear layer `{call.name}` does not see the sample itself"
    return _part(call, values)


def last(case: Case, values: Tree) -> Linear | str:
    """The layer that gives the classes' scores, if it is linear; else the reason why not."""
    calls, _, out = _watch(case)
    call = [call for call in calls if not any(call.module.children())][-1]
    if not isinstance(call.module, nn.Linear) or call.output.shape != out.shape or not torch.equal(call.output, out):
        kind = type(call.module).__name__
        return f"the classes' scores do not come from a linear layer, but from {kind} `{call.name}`"
    if out.dim() > 2:
        return "the network scores every position of a sample, not the sample"
    return _part(call, values)


def candidates(layer: Linear, tolerance: float) -> tuple[Tensor, Tensor]:
    """What the rows of a gradient say, those that agree taken together, the largest bias gradient first.

    Returns: candidates ``[found, features]`` in float64, and how many rows stand behind each ``[found]``.
    """
    weight, bias = layer.weight.double(), layer.bias.double()
    order = torch.argsort(bias.abs(), descending=True)
    order = order[bias[order].abs() > 1e-6 * bias.abs().max()]
    left = weight[order] / bias[order, None]
    rows, told = [], []
    while len(left):
        agree = (left - left[0]).abs().amax(1) <= tolerance
        rows.append(left[0])
        told.append(int(agree.sum()))
        left = left[~agree]
    return torch.stack(rows) if rows else left, torch.tensor(told, dtype=torch.int64)


def plausible(case: Case, rows: Tensor, weight: Tensor, tolerance: float) -> Tensor:
    """The candidates ``rows`` ``[found, features]`` that are likeliest to be samples, as many as the client has.

    Those in the data's range come first, and among them those of the largest ``weight`` ``[found]``; where these are
    equal, the order stays. Returns samples ``[kept, *shape]``, within the range.
    """
    low, high = case.data.range or (-torch.inf, torch.inf)
    inside = ((rows >= low - tolerance) & (rows <= high + tolerance)).all(1)
    # Stable sorts, the weightiest reason last.
    ranked = torch.argsort(weight, descending=True, stable=True)
    ranked = ranked[torch.argsort(inside[ranked].int(), descending=True, stable=True)]
    kept = rows[ranked[: case.context.samples]].clamp(low, high)
    return kept.reshape(-1, *case.data.shape).float()


def features(case: Case, x: Tensor) -> Tensor:
    """What the last layer sees of the samples ``x``, ``[samples, features]``."""
    calls, _, _ = _watch(case, x)
    return [call for call in calls if not any(call.module.children())][-1].input


def _part(call: _Call, values: Tree) -> Linear | str:
    weight, bias = f"{call.name}.weight", f"{call.name}.bias"
    missing = [name for name in (weight, bias) if name not in values]
    return f"the message holds no `{missing[0]}`" if missing else Linear(values[weight], values[bias], call.name)


@torch.no_grad()
def _watch(case: Case, x: Tensor | None = None) -> tuple[list[_Call], Tensor, Tensor]:
    """The calls of layers with parameters of their own, in order, on ``x`` or else on meaningless samples; those; and
    the outputs."""
    calls: list[_Call] = []

    def watched(name: str, module: nn.Module):
        return module.register_forward_hook(
            lambda module, inputs, output: calls.append(_Call(name, module, inputs[0], output))
        )

    layers = [(n, m) for n, m in case.network.module.named_modules() if any(True for _ in m.parameters(recurse=False))]
    hooks = [watched(name, module) for name, module in layers]
    try:
        x = case.noise(2, "layers") if x is None else x
        x = x.to(next(iter(case.model.values())).dtype) if x.is_floating_point() else x
        out = case.network.apply(case.model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, x, out
