"""PyTorch's compiler: where it keeps what it has made, and what happens where it does not work."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.func import grad, vmap

SHAPES = 1024
"""Variants of one function that may be compiled: enough for every size that stacks and batches are padded to."""


def keep_in(folder: Path) -> None:
    """From now on what is compiled is kept in ``folder``, for later runs and for workers that this process starts.

    Where the user has named a folder (``TORCHINDUCTOR_CACHE_DIR``), it stays that one.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@functools.cache
def trouble() -> str | None:
    """Why nothing can be compiled on this machine; None if something was."""
    try:
        torch.compile(vmap(grad(lambda x: x.square().sum())), dynamic=False, fullgraph=True)(torch.ones(2, 3))
    except Exception as error:  # whatever it is, the run can do without the compiler
        return _first_line(error)
    return None


def whole(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``function`` compiled as a whole, for each shape of its arguments; as it is, if that turns out to be impossible.

    That depends on the function and the machine alone, so that workers on like machines agree on it.
    """
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = SHAPES
    compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False, fullgraph=True)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                compiled = None
                print(f"train: {what} cannot be compiled, so they run as they are ({_first_line(error)})")
        return function(*args)

    return run


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
