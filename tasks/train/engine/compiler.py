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

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_structure, tree_unflatten

from tasks.train.engine.kernels import ON_CPU


def keep_in(folder: Path) -> None:
    """From now on what is compiled is kept in ``folder``, for later runs and for workers that this process starts.

    Where the user has named a folder (``TORCHINDUCTOR_CACHE_DIR``), it stays that one.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def whole(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``function`` compiled as a whole, for each shape of its arguments; as it is, if that turns out to be impossible.

    ``function`` takes and gives trees of tensors, and is pure. Whether it can be compiled depends on it and on the
    machine alone, so that workers on like machines agree on it.
    """
    programs: dict[tuple, Callable[..., Any]] = {}

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        leaves: list[Tensor] = []
        kind = _kind(args, leaves)
        program = programs.get(kind)
        if program is None:
            spec = tree_structure(args)
            try:
                program = _compiled(function, leaves, spec)
            except Exception as error:
                print(f"train: {what} cannot be compiled, so they run as they are ({_first_line(error)})")
                program = _plain(function, spec)
            programs[kind] = program
        return program(leaves)

    return run


def _kind(value: Any, leaves: list[Tensor]) -> tuple:
    """All that a program for ``value`` depends on but the numbers: names, shapes, strides. Adds to ``leaves`` its
    tensors, in the order of ``tree_flatten``, which takes several times as long."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple(value), *[_kind(inner, leaves) for inner in value.values()]
    return len(value), *[_kind(inner, leaves) for inner in value]


def _compiled(function: Callable[..., Any], leaves: list[Tensor], spec: TreeSpec) -> Callable[[list[Tensor]], Any]:
    """``function`` of the tensors that ``spec`` makes its arguments of, for tensors laid out as ``leaves``."""
    from torch._inductor import compile as inductor

    _wrap_integers()
    into: list[TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        results, shape = tree_flatten(function(*tree_unflatten(tensors, spec)))
        into.append(shape)
        return results

    # The tracer tells tensors apart by identity: one that is given twice now may be two the next time.
    leaves = [leaf.detach() for leaf in leaves]
    table = ON_CPU if all(leaf.device.type == "cpu" for leaf in leaves) else {}
    graph = make_fx(flat, decomposition_table=table)(*leaves)
    kernel = inductor(graph, leaves)
    kernel(*leaves)
    return lambda tensors: tree_unflatten(kernel(*tensors), into[0])


@functools.cache
def _wrap_integers() -> None:
    """From now on integers in what is compiled for a CPU wrap around, as PyTorch's do.

    Those of C++ do not: a product that is sure to overflow, as when a counter is hashed, is whatever the C++ compiler
    likes, and draws would differ from those of the same key elsewhere. Inductor has no setting for its flags.
    """
    from torch._inductor import cpp_builder

    usual = cpp_builder._get_optimization_cflags

    def flags(*args: Any, **kwargs: Any) -> tuple[list[str], list[str]]:
        compiling, linking = usual(*args, **kwargs)
        return [*compiling, "fwrapv"], linking

    cpp_builder._get_optimization_cflags = flags


def _plain(function: Callable[..., Any], spec: TreeSpec) -> Callable[[list[Tensor]], Any]:
    return lambda tensors: function(*tree_unflatten(tensors, spec))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
