"""The variance of weights, and what averaging takes of it.

The mean of k independent weight tensors of variance v has variance v / k: activations and gradients shrink with it, and
a network begins on a plateau. Rescaled around its mean to the variance of what went in, it does not.

Source: Tian et al., "Vanishing Variance Problem in Fully Decentralized Neural-Network Systems", arXiv:2404.04616, 2024,
and its authors' first simulator. In float64: the relative guard against division by 0 damps nothing, where an absolute
one damps layers of small variance.
"""

import torch
from torch import Tensor

from tasks.tree import Tree

GUARD = 1e-12


def spreads(models: Tree) -> Tree:
    """Var of every weight tensor of stacked ``models``, around the tensor's own mean: float64 ``[models]`` each.

    Weights are what has two dimensions or more; biases and the scales of norms have no variance to keep.
    """
    weights = {name: value.flatten(1) for name, value in models.items() if value.dim() > 2}
    return {name: value.double().var(1, correction=0) for name, value in weights.items()}


def rescaled(values: Tensor, target: Tensor) -> Tensor:
    """Stacked tensors ``[models, ...]``, each stretched around its own mean until its variance is ``target``
    ``[models]``. Where it has that variance already, nothing changes, to the last bit; float64."""
    flat = values.flatten(1).double()
    away = flat - flat.mean(1, keepdim=True)
    variance = flat.var(1, correction=0)
    # As a change, so that a factor of 1 leaves every bit.
    factor = (target / variance.clamp(min=GUARD * target + torch.finfo(torch.float64).tiny)).sqrt()
    return (flat + away * (factor - 1)[:, None]).reshape(values.shape)
