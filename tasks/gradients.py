"""Gradients as transforms of functions, taken by the cheapest means that the place allows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, func
from torch._C._functorch import peek_interpreter_stack
from torch.utils._pytree import tree_map_only

from tasks import tree
from tasks.tree import Tree


def grad_and_value(function: Callable[..., Any], has_aux: bool = False) -> Callable[..., tuple[Tree, Any]]:
    """As :func:`torch.func.grad_and_value`, of a function of a tree (and of more, held fixed).

    Where no transform is at work and no graph is kept (``torch.no_grad``), as in a loop over clients, plain autograd
    does it: it need not be ready for a second derivative, which saves up to a fifth of a step. Everywhere else, within
    ``function`` too, it is the transform, so calls may be nested and stacked. The two agree up to rounding.
    """
    transform = func.grad_and_value(function, has_aux=has_aux)

    def both(params: Tree, *others: Any) -> tuple[Tree, Any]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
            return transform(params, *others)
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            value, aux = function(leaves, *others) if has_aux else (function(leaves, *others), None)
        gradient = _backward(value, leaves)
        return gradient, (value.detach(), tree_map_only(Tensor, Tensor.detach, aux)) if has_aux else value.detach()

    return both


def _backward(value: Tensor, leaves: Tree) -> Tree:
    if not value.requires_grad:
        return tree.zeros_like(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
