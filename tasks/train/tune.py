"""Measures how the client work of a run is best laid out on this machine."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tasks import models
from tasks.params import Params
from tasks.partition.federation import Federation
from tasks.tracking import Tracker, main_checkout
from tasks.train.coordinator import Coordinator
from tasks.train.engine import compiler
from tasks.train.engine.plan import Plan, can_compile, resolve, workers, workload
from tasks.train.engine.program import Blueprint
from tasks.train.engine.workers import hire
from tasks.train.stage import COMPILED
from tasks.train.transcript import Recorder


class Measured(NamedTuple):
    """A plan and what it takes: seconds to start (compiling included), of a steady round, and of the whole run."""

    plan: Plan
    start: float
    round: float
    whole: float


def tune(params: Params, folder: Path, tracker: Tracker, seconds: float = 3.0) -> list[Measured]:
    """Measures plans for the run of ``params`` on the partition in ``folder``, the best first.

    Each plan takes real rounds for about ``seconds`` after its first. The rule's own plan is among them.
    """
    compiler.keep_in(main_checkout() / COMPILED)
    data = Federation.open(folder / "partition")
    network = models.build(params.model, data.meta.shape, data.meta.classes, params.seed)
    work = workload(params.train, network, data.meta.shape, data.x.dtype, data.sizes)
    plans = list(candidates(resolve(params.train.engine, work), params.train.cohort))
    measured = []
    for i, plan in enumerate(plans, 1):
        measured.append(_measure(params, data, network, plan, seconds))
        tracker.progress(i, len(plans), "plan", **{"s/round": measured[-1].round})
    return sorted(measured, key=lambda m: m.whole)


def candidates(ruled: Plan, cohort: int) -> Iterator[Plan]:
    """The plans worth measuring: the rule's own, then stacks of several sizes, with Ray or without, compiled or not
    where there is a compiler."""
    counts = dict.fromkeys((0, workers("auto", ruled.device)))
    compiling = (False, True) if can_compile(ruled.device) else (False,)
    sizes = dict.fromkeys(min(size, cohort) for size in (1, 4, 16, 64, 256))
    plans = (
        Plan(stack, ruled.device, count, compiled)
        for stack in sizes
        for compiled in (compiling if stack > 1 else (False,))
        for count in counts
    )
    yield from dict.fromkeys((ruled, *plans))


def _measure(params: Params, data: Federation, network: models.Network, plan: Plan, seconds: float) -> Measured:
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        hire(Blueprint(data.path.resolve(), params.model, params.train, plan, params.seed)) as hired,
    ):
        folder = Path(scratch)
        coordinator = Coordinator(
            params.train, plan, params.seed, data, network.parameters, hired, Recorder(folder / "transcript"), folder,
            draw=partial(models.redrawn, params.model, data.meta.shape, data.meta.classes, params.seed),
        )  # fmt: skip
        steps = params.train.schedule.run(coordinator)
        next(steps)
        first = time.perf_counter() - begun
        rounds: list[float] = []
        while sum(rounds) < seconds or len(rounds) < 5:
            start = time.perf_counter()
            next(steps)
            rounds.append(time.perf_counter() - start)
    # The median: a round now and then meets a new shape and compiles it.
    steady = statistics.median(rounds)
    late = sum(max(taken - 2 * steady, 0.0) for taken in rounds)
    return Measured(plan, first + late, steady, first + late + steady * (params.train.rounds - 1))
