"""Clients a second over ways to lay the work out: what the rule of ``tasks/train/engine/plan.py`` was fitted on."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders.contract import Job
from benchmarks.contenders.fedloom import Fedloom
from benchmarks.machine import machine
from benchmarks.race import Contender, Entrant, Timing, race
from benchmarks.speed import engine
from benchmarks.workloads import ROOT, SEED, WORKLOADS, Workload, prepare
from tasks.models import Model
from tasks.models.architectures import CNN, MLP, Logistic, ResNet
from tasks.partition.datasets import Dataset, Npz
from tasks.train.engine.plan import Plan
from tasks.train.engine.plan import workload as weighed

RESULTS = ROOT / "benchmarks" / "results" / "layouts.json"
TIMING = Timing(warmup=2, passes=3, seconds=0.5)
STACKS = (4, 16, 64, 256)
RUNS = (30, 1_000, 100_000)
"""Rounds of a run for which the rule's choice is judged, its start-up counted in."""


class Layout(NamedTuple):
    """Clients that run as one model, and whether that is compiled; a stack of one is a loop."""

    stack: int
    compile: bool

    @property
    def title(self) -> str:
        return "looped" if self.stack == 1 else f"{'compiled' if self.compile else 'stacked'} {self.stack}"

    def contender(self) -> Contender:
        return engine(self.title.replace(" ", "-"), self.title, stack=self.stack, compile=self.compile)


def noise(shape: tuple[int, ...], clients: int, samples: int, folder: Path) -> Dataset:
    """Noise of a shape, for so many clients of so many samples: layouts differ by the arithmetic alone."""
    rng, count = np.random.default_rng(SEED), clients * samples
    arrays = {"x": rng.integers(0, 256, (count, *shape), np.uint8), "y": np.arange(count) % 10}
    test = {"test_x": arrays["x"][:100], "test_y": arrays["y"][:100]}
    np.savez(folder / "noise.npz", **arrays, **test)
    return Npz(path=folder / "noise.npz")


def on_noise(
    name: str, model: Model, shape: tuple[int, ...], cohort: int, batch: int = 16, samples: int = 32
) -> Workload:
    """A workload of the grid: two cohorts of clients with ``samples`` samples each."""
    size = " x ".join(map(str, shape))
    title = f"{name}, {size}, cohort {cohort}, batch {batch}"
    data = partial(noise, shape, 2 * cohort, samples)
    name = f"{name}-{size.replace(' ', '')}-{cohort}-{batch}".replace(" ", "-")
    return Workload(name, title, data, 2 * cohort, model, cohort, batch, 0.1, 1, 2, 2, 3)


IMAGES, DIGITS = (28, 28), (8, 8)
GRID = {
    workload.name: workload
    for workload in (
        on_noise("logistic", Logistic(), DIGITS, cohort=50),
        on_noise("mlp 64", MLP(hidden=(64,)), DIGITS, cohort=10),
        on_noise("mlp 64", MLP(hidden=(64,)), DIGITS, cohort=50),
        on_noise("mlp 64", MLP(hidden=(64,)), DIGITS, cohort=200),
        on_noise("mlp 256 128", MLP(hidden=(256, 128)), IMAGES, cohort=10),
        on_noise("mlp 256 128", MLP(hidden=(256, 128)), IMAGES, cohort=50),
        on_noise("mlp 1024 1024", MLP(hidden=(1024, 1024)), IMAGES, cohort=10),
        on_noise("cnn 16", CNN(width=16), DIGITS, cohort=10),
        on_noise("cnn 16", CNN(width=16), DIGITS, cohort=50),
        on_noise("cnn 8", CNN(width=8), IMAGES, cohort=10),
        on_noise("cnn 8", CNN(width=8), IMAGES, cohort=10, batch=4),
        on_noise("cnn 32", CNN(width=32, kernel=5), IMAGES, cohort=10),
        on_noise("cnn 32", CNN(width=32, kernel=5), IMAGES, cohort=10, batch=1, samples=4),
        on_noise("resnet 8", ResNet(width=8), IMAGES, cohort=10),
        WORKLOADS["d"],
    )
}


def layouts(cohort: int) -> list[Layout]:
    """What is measured: a loop, and stacks of several sizes, compiled or not, up to the first that holds a cohort."""
    sizes = [size for i, size in enumerate(STACKS) if not i or STACKS[i - 1] < cohort]
    return [Layout(1, False), *(Layout(size, compiled) for compiled in (False, True) for size in sizes)]


def measure(names: Sequence[str], timing: Timing = TIMING) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of one workload of the grid after another, each with its name."""
    here = machine()
    for name in names:
        workload = GRID[name]
        print(f"\n{workload.title}", flush=True)
        job = prepare(workload)
        fedloom = Fedloom(Job(job))
        work = weighed(
            fedloom.train, fedloom.network, fedloom.data.meta.shape, fedloom.data.x.dtype, fedloom.data.sizes
        )
        tried = layouts(workload.cohort)
        ruled = {rounds: nearest(fedloom.ruled(rounds), tried) for rounds in RUNS}
        figures = race(name, [Entrant(layout.contender(), job) for layout in tried], timing)
        yield (
            name,
            {
                "machine": here,
                "title": workload.title,
                "cohort": workload.cohort,
                "parameters": work.parameters,
                "operations": work.operations * work.batch,
                "ruled": {str(rounds): layout.title for rounds, layout in ruled.items()},
                "layouts": {layout.title: figures[layout.contender().name] for layout in tried},
            },
        )


def nearest(plan: Plan, tried: Sequence[Layout]) -> Layout:
    """The measured layout that comes closest to a plan: as compiled as it is, in stacks of the nearest size."""
    alike = [layout for layout in tried if layout.compile == (plan.compile and plan.stack > 1)]
    return min(alike, key=lambda layout: abs(np.log(layout.stack / plan.stack)))


def seconds(workload: dict, title: str, rounds: int) -> float | None:
    """A whole run of so many rounds in a layout, None where it was not measured."""
    figures = workload["layouts"].get(title, {})
    return figures["startup"] + rounds * median(figures["seconds"]) if figures.get("seconds") else None


def steady(workload: dict, title: str) -> float | None:
    """Clients a second in a layout once it has started."""
    figures = workload["layouts"].get(title, {})
    return workload["cohort"] / median(figures["seconds"]) if figures.get("seconds") else None


def loss(workload: dict, rounds: int) -> float | None:
    """By which factor a run of so many rounds takes longer as the rule lays it out than in the best layout."""
    ruled = seconds(workload, workload["ruled"][str(rounds)], rounds)
    every = [taken for title in workload["layouts"] if (taken := seconds(workload, title, rounds)) is not None]
    return ruled / min(every) if ruled is not None else None


def break_even(workload: dict) -> float | None:
    """Rounds from which the best compiled layout is ahead of the best that is not; None where it never is."""
    found = {title: figures for title, figures in workload["layouts"].items() if figures.get("seconds")}
    paces = {title: median(figures["seconds"]) for title, figures in found.items()}
    compiled = min((t for t in paces if t.startswith("compiled")), key=paces.get, default=None)
    eager = min((t for t in paces if not t.startswith("compiled")), key=paces.get, default=None)
    if compiled is None or eager is None or paces[compiled] >= paces[eager]:
        return None
    return max(found[compiled]["startup"] - found[eager]["startup"], 0.0) / (paces[eager] - paces[compiled])
