"""The two layers of a network from which a gradient is read in closed form, found by watching it run."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.attack.case import Case
from tasks.tree import Tree


class Linear(NamedTuple):
    """The parts of ``values`` (a gradient, an update) that belong to one linear layer with a bias."""

    weight: Tensor
    bias: Tensor


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


def _part(call: _Call, values: Tree) -> Linear | str:
    weight, bias = f"{call.name}.weight", f"{call.name}.bias"
    missing = [name for name in (weight, bias) if name not in values]
    return f"the message holds no `{missing[0]}`" if missing else Linear(values[weight], values[bias])


@torch.no_grad()
def _watch(case: Case) -> tuple[list[_Call], Tensor, Tensor]:
    """The calls of layers with parameters of their own, in order, on meaningless samples; those; and the outputs."""
    calls: list[_Call] = []

    def watched(name: str, module: nn.Module):
        return module.register_forward_hook(
            lambda module, inputs, output: calls.append(_Call(name, module, inputs[0], output))
        )

    layers = [(n, m) for n, m in case.network.module.named_modules() if any(True for _ in m.parameters(recurse=False))]
    hooks = [watched(name, module) for name, module in layers]
    try:
        x = case.noise(2, "layers")
        out = case.network.apply(case.model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, x, out
