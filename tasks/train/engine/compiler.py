"""PyTorch's compiler: what is compiled and for which shapes, where that is kept, and what happens where it fails.

A function of tensors is traced to a graph of operations (``make_fx``), of which Inductor makes kernels. It looks at no
Python on the way: what the engine compiles are pure functions, so a graph is good for all tensors of like shapes,
and to look it up is all that a call costs beside the kernels.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tasks.train.engine.kernels import ON_CPU


def keep_in(folder: Path) -> None:
    """From now on what is compiled is kept in ``folder``, for later runs and for workers that this process starts.

    Where the user has named a folder (``TORCHINDUCTOR_CACHE_DIR``), it stays that one.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@functools.cache
def trouble() -> str | None:
    """Why nothing can be compiled on this machine; None if something was."""
    try:
        _compiled(vmap(grad(lambda x: x.square().sum())), *tree_flatten((torch.ones(2, 3),)))
    except Exception as error:  # whatever it is, the run can do without the compiler
        return _first_line(error)
    return None


def whole(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``function`` compiled as a whole, for each shape of its arguments; as it is, if that turns out to be impossible.

    ``function`` takes and gives trees of tensors, and is pure. Whether it can be compiled depends on it and on the
    machine alone, so that workers on like machines agree on it.
    """
    programs: dict[tuple, Callable[..., Any]] = {}

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        leaves, spec = tree_flatten(args)
        shapes = tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves)
        program = programs.get(shapes)
        if program is None:
            try:
                program = _compiled(function, leaves, spec)
            except Exception as error:
                print(f"train: {what} cannot be compiled, so they run as they are ({_first_line(error)})")
                program = _plain(function, spec)
            programs[shapes] = program
        return program(leaves)

    return run


def _compiled(function: Callable[..., Any], leaves: list[Tensor], spec: TreeSpec) -> Callable[[list[Tensor]], Any]:
    """``function`` of the tensors that ``spec`` makes its arguments of, for tensors laid out as ``leaves``."""
    from torch._inductor import compile as inductor

    into: list[TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        results, shape = tree_flatten(function(*tree_unflatten(tensors, spec)))
        into.append(shape)
        return results

    table = ON_CPU if all(leaf.device.type == "cpu" for leaf in leaves) else {}
    graph = make_fx(flat, decomposition_table=table)(*leaves)
    kernel = inductor(graph, leaves)
    kernel(*leaves)
    return lambda tensors: tree_unflatten(kernel(*tensors), into[0])


def _plain(function: Callable[..., Any], spec: TreeSpec) -> Callable[[list[Tensor]], Any]:
    return lambda tensors: function(*tree_unflatten(tensors, spec))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
