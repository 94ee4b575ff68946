"""How the client work is laid out: a rule over what is known before the run starts, never a stopwatch.

Stacked, looped and compiled steps differ in the last bits, so what decides between them must be the same on every run
and must not depend on how many workers there are. The constants were fitted with `python -m benchmarks layouts`.
"""

import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from tasks.config import Refused
from tasks.models import Network
from tasks.train.settings import Engine, TrainSettings
from tasks.train.work import Batches

STACK_LIMIT = 64
"""Clients of a stack. Cohorts of hundreds would run up to 1.3 times as fast as one stack, and keep one worker busy."""
STACK_OPERATIONS = 2.5e7
"""Floating-point operations of a client's forward pass over a batch from which a loop beats a stack, on a CPU."""
STACK_FLOATS = 5_000_000
"""Parameters that a stack may hold in all."""
COMPILE_STEPS = 8_000
"""Stacked steps in a run by which the seconds of compiling have come back, on a CPU, wherever they do."""


class Plan(NamedTuple):
    """The resolved layout. All but ``workers`` touch the last bits of the result; ``workers`` does not."""

    stack: int
    device: str
    workers: int
    compile: bool = False

    @property
    def layout(self) -> dict[str, int | str | bool]:
        """What touches the last bits, by name."""
        return {name: value for name, value in self._asdict().items() if name != "workers"}


class Workload(NamedTuple):
    """What the rule looks at: ``parameters`` of the model, floating-point ``operations`` of a forward pass over one
    sample, the ``batch`` that a typical client puts through a step and its ``steps`` a round, the sizes of the run, and
    whether it is ``asynchronous``, which makes stacks of all lengths."""

    parameters: int
    operations: int
    batch: int
    steps: int
    cohort: int
    rounds: int
    asynchronous: bool = False


def workload(
    train: TrainSettings, network: Network, shape: tuple[int, ...], dtype: np.dtype, sizes: np.ndarray
) -> Workload:
    """The workload of a run over clients of ``sizes`` training samples."""
    batches: Batches = train.algorithm.batches
    typical = int(np.median(sizes))
    batch = min(batches.size or typical, typical)
    parameters = sum(value.numel() for value in network.parameters.values())
    operations = _operations(network, shape, dtype)
    steps, asynchronous = batches.steps(typical), train.schedule.asynchronous
    return Workload(parameters, operations, max(batch, 1), steps, train.cohort, train.rounds, asynchronous)


def resolve(engine: Engine, work: Workload) -> Plan:
    """The plan for a workload.

    Raises
    ------
    Refused
        If a GPU or a compiler is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if engine.device == "cuda" and not has_gpu:
        where, mend = "params.yaml: train.engine.device", "Use auto or cpu"
        raise Refused(where, "cuda", "there is no GPU that PyTorch can use", mend)
    device = "cuda" if has_gpu and engine.device != "cpu" else "cpu"
    stack = _stack(engine.stack, work, device)
    return Plan(stack, device, workers(engine.workers, device), _compile(engine.compile, work, stack, device))


def _stack(stack: int | str, work: Workload, device: str) -> int:
    if isinstance(stack, int):
        return max(1, min(stack, work.cohort))
    if device == "cpu" and work.operations * work.batch > STACK_OPERATIONS:
        return 1
    affordable = STACK_FLOATS // max(work.parameters, 1)
    return max(1, min(STACK_LIMIT, affordable, work.cohort))


def _compile(wish: bool | str, work: Workload, stack: int, device: str) -> bool:
    if wish is False or (wish == "auto" and (stack == 1 or work.asynchronous)):
        return False
    steps = work.rounds * work.steps * -(-work.cohort // stack)
    if wish == "auto" and steps < COMPILE_STEPS:
        return False
    if not can_compile(device):
        if wish is True:
            where, mend = "params.yaml: train.engine.compile", "Install a C++ compiler (g++), or use auto"
            raise Refused(where, True, "there is no C++ compiler on this machine", mend)
        print("train: there is no C++ compiler, so nothing is compiled; installing g++ would make this run faster")
        return False
    return True


def can_compile(device: str) -> bool:
    """Whether this machine has what compiling for ``device`` takes: a C++ compiler, for a CPU."""
    compilers = os.environ.get("CXX", "c++"), "g++", "clang++"
    return device != "cpu" or any(shutil.which(name) for name in compilers)


def _operations(network: Network, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Floating-point operations of the forward pass of one sample, counted, not timed."""
    from torch.utils.flop_counter import FlopCounterMode

    sample = torch.zeros((1, *shape), dtype=torch.from_numpy(np.zeros(0, dtype)).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.apply(network.parameters, sample)
    return counter.get_total_flops()


def workers(wish: int | str, device: str) -> int:
    """How many actors ``engine.workers`` asks for on this machine."""
    if isinstance(wish, int):
        return wish
    return torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))


def stacks(clients: np.ndarray, steps: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts a cohort into stacks of at most ``size`` clients with like numbers of steps, the longest work first.

    A function of the cohort alone. Yields positions within ``clients``, int64 ``[stack]``."""
    longest_first = np.lexsort((clients, -steps))
    count = -(-len(clients) // size)
    yield from np.array_split(longest_first, count) if count else ()
