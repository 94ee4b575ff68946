"""A ``Tree`` is a ``dict[str, Tensor]``: the only thing in which numbers cross a boundary.

A tree may hold several trees under prefixes: ``join(delta=a, control=b)`` has the names ``delta/...`` and
``control/...``, and ``part(tree, "delta")`` gives ``a`` back. So a server's state, a client's memory and a message are
each one tree, and saving one needs no code of its own.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Tree = dict[str, Tensor]


def join(**parts: Tree) -> Tree:
    """One tree of several, each under its keyword as a prefix."""
    return {f"{prefix}/{name}": value for prefix, part_ in parts.items() for name, value in part_.items()}


def part(tree: Tree, prefix: str) -> Tree:
    """The tree that :func:`join` put under ``prefix``."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in tree.items() if name.startswith(start)}


def map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """``function`` of the tensors of the same name."""
    return {name: function(value, *(other[name] for other in others)) for name, value in tree.items()}


def zeros_like(tree: Tree) -> Tree:
    return map(torch.zeros_like, tree)


def add(a: Tree, b: Tree, scale: float | Tensor = 1.0) -> Tree:
    """``a + scale * b``."""
    return map(lambda x, y: x + scale * y, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    return map(torch.sub, a, b)


def scale(tree: Tree, by: float | Tensor) -> Tree:
    return map(lambda x: x * by, tree)


def dot(a: Tree, b: Tree) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def square_distance(a: Tree, b: Tree) -> Tensor:
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


def norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all tensors together."""
    return torch.stack([value.square().sum() for value in tree.values()]).sum().sqrt()


def stack(trees: Iterable[Tree]) -> Tree:
    """One tree with a new leading dimension, one slice a tree."""
    trees = list(trees)
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


def concatenate(trees: Iterable[Tree]) -> Tree:
    """One stacked tree of several, along the leading dimension."""
    trees = list(trees)
    return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}


def take(tree: Tree, index: int | slice | Tensor) -> Tree:
    """The slices of a stacked tree at ``index``."""
    return {name: value[index] for name, value in tree.items()}


def repeat(tree: Tree, times: int) -> Tree:
    """A stacked tree of ``times`` equal slices, without copying."""
    return {name: value.expand(times, *value.shape) for name, value in tree.items()}


def to(tree: Tree, device: torch.device | str) -> Tree:
    return {name: value.to(device) for name, value in tree.items()}


def nbytes(tree: Tree) -> int:
    """The bytes of the tensors themselves, in the dtype that they have."""
    return sum(value.numel() * value.element_size() for value in tree.values())


def vector(tree: Tree) -> Tensor:
    """All entries as one vector, in the order of the tree."""
    return torch.cat([value.reshape(-1) for value in tree.values()])


def like(vector_: Tensor, tree: Tree) -> Tree:
    """The inverse of :func:`vector`: the entries in the shapes and dtypes of ``tree``."""
    pieces = vector_.split([value.numel() for value in tree.values()])
    return {n: piece.reshape(v.shape).to(v.dtype) for (n, v), piece in zip(tree.items(), pieces, strict=True)}


class Packed(NamedTuple):
    """A tree as one flat byte array and the means to read it: what crosses a process boundary fast."""

    data: np.ndarray
    spec: tuple[tuple[str, str, tuple[int, ...]], ...]


def pack(tree: Tree) -> Packed:
    """``tree`` as one byte array. Names, dtypes and shapes are in ``spec``."""
    spec = tuple((name, str(value.dtype).removeprefix("torch."), tuple(value.shape)) for name, value in tree.items())
    flat = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for value in tree.values()]
    return Packed(np.concatenate(flat) if flat else np.zeros(0, np.uint8), spec)


def unpack(packed: Packed) -> Tree:
    """The tree of :func:`pack`, copied out of the (possibly read-only) buffer."""
    tree, start = {}, 0
    for name, dtype, shape in packed.spec:
        value = torch.empty(shape, dtype=getattr(torch, dtype))
        raw = value.reshape(-1).view(torch.uint8).numpy()
        raw[:] = packed.data[start : start + len(raw)]
        tree[name] = value
        start += len(raw)
    return tree
