"""What a larger population, a larger cohort and a larger model cost: measured here, and projected past this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks import constants
from benchmarks.machine import machine
from benchmarks.projection import Simulator
from benchmarks.race import QUIET, Contender, Entrant, Failed, Timing, race
from benchmarks.workloads import CACHE, ROOT, SEED, Workload, completed, prepare
from tasks.models import Model
from tasks.models.architectures import MLP
from tasks.partition.datasets import Dataset, Npz

RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
COHORTS = (10, 100, 1_000, 10_000)
COHORT = 100
"""Clients a round while the population grows."""
FEW = 4
"""Clients a round while the model grows."""
SAMPLES, FEATURES, CLASSES = 4, 16, 10
"""Of every client; numbers in a sample; labels."""
WIDTHS = (1_024, 4_096)
"""Of the two hidden layers of the models of which one is larger than the other."""
TIMING = Timing(warmup=3, passes=5, seconds=1.0)
LARGE = Timing(warmup=1, passes=2, seconds=1.0, rounds=1)


class Partitioned(NamedTuple):
    """The partition stage on a population: its seconds and the bytes that it took at most, imports among them, and the
    bytes of the index that it left."""

    seconds: float
    memory: int
    index: int


def measure(populations: Sequence[int] = POPULATIONS, cohorts: Sequence[int] = COHORTS) -> dict[str, Any]:
    """All figures. ``cohorts`` are measured on the largest of ``populations``."""
    here, home = machine(), CACHE / "scale"
    shutil.rmtree(home, ignore_errors=True)
    jobs, stages = {}, {}
    for clients in populations:
        jobs[clients], stages[clients] = partitioned(clients, home / f"clients-{clients}")
        taken, memory = stages[clients].seconds, stages[clients].memory / 2**20
        print(f"{clients:,} clients: partition and index in {taken:.1f} s and {memory:,.0f} MiB", flush=True)
    scaffold = {"algorithm": {"name": "scaffold"}}
    grown = [Entrant(_named("clients", n), jobs[n]) for n in populations]
    keeping = [Entrant(_named("scaffold", n, scaffold), jobs[n]) for n in populations]
    largest = jobs[max(populations)]
    crowds = [Entrant(_named("cohort", n, {"cohort": n}), largest) for n in cohorts]
    wide = {
        width: prepare(_workload(100, FEW, MLP(hidden=(width, width))), home / f"width-{width}") for width in WIDTHS
    }
    models = [Entrant(_named("width", width), job) for width, job in wide.items()]
    results = {
        "machine": here,
        "partition": {str(clients): stage._asdict() for clients, stage in stages.items()},
        "population": _figures(race("population", grown, TIMING)),
        "scaffold": _figures(race("scaffold", keeping, TIMING)),
        "cohort": _figures(race("cohort", crowds, TIMING)),
        "model": _figures(race("model", models, LARGE)),
        "parameters": {str(width): _parameters(job) for width, job in wide.items()},
        "constants": constants.measure().content(),
    }
    shutil.rmtree(home)
    return results


def partitioned(clients: int, home: Path) -> tuple[Path, Partitioned]:
    """A job of so many clients, and what the partition stage took, run as its command and watched from outside."""
    home.mkdir(parents=True)
    workload = _workload(clients, COHORT, MLP(hidden=(64,)))
    section = {"dataset": _noise(clients, home).model_dump(mode="json"), "clients": clients, "split": {"name": "iid"}}
    # JSON is YAML.
    (home / "params.yaml").write_text(json.dumps({"partition": section | {"min_size": 1}}))
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT), "FEDLOOM_TRACKING": "off"}
    start = time.perf_counter()
    with (home / "partition.log").open("w") as log:
        command = [sys.executable, "-m", "tasks.partition"]
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    # subprocess's own wait does not say how much memory it was.
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"the partition stage failed on {clients:,} clients; see {home / 'partition.log'}")
    folder = home / "artifacts" / "partition"
    index = sum((folder / f"{name}.npy").stat().st_size for name in ("indices", "offsets", "train_sizes"))
    (home / "noise.npz").unlink()
    return completed(workload, folder), Partitioned(taken, usage.ru_maxrss * 1024, index)


def simulator(results: dict[str, Any]) -> Simulator:
    """What the engine takes beside the arithmetic: from the slopes of the figures."""
    crowd, model, parameters = results["cohort"], results["model"], results["parameters"]
    (few, many), (small, large) = _ends(crowd), _ends(model)
    client = (crowd[many]["seconds"] - crowd[few]["seconds"]) / (int(many) - int(few))
    more = parameters[large] - parameters[small]
    handled = (model[large]["seconds"] - model[small]["seconds"]) / more / FEW
    held = (model[large]["memory"] - model[small]["memory"]) / more
    return Simulator(client, handled, held)


def _ends(figures: dict[str, Any]) -> tuple[str, str]:
    sizes = sorted(figures, key=int)
    return sizes[0], sizes[-1]


def _workload(clients: int, cohort: int, model: Model) -> Workload:
    return Workload("scale", "", lambda home: _noise(clients, home), clients, model, cohort, 16, 0.1, 1, 1, 1, 1)


def _noise(clients: int, home: Path) -> Dataset:
    rng, count = np.random.default_rng(SEED), clients * SAMPLES
    arrays = {"x": rng.standard_normal((count, FEATURES), np.float32), "y": np.arange(count) % CLASSES}
    test = {"test_x": arrays["x"][:100], "test_y": arrays["y"][:100]}
    np.savez(home / "noise.npz", **arrays, **test)
    return Npz(path=home / "noise.npz")


def _named(what: str, size: int, changes: dict | None = None) -> Contender:
    return Contender(f"{what}-{size}", f"{what} {size:,}", "fedloom", ("--train", json.dumps(changes or {})))


def _figures(raced: dict[str, dict]) -> dict[str, Any]:
    """The median pass and the memory of every entrant, by its size."""
    for name, figures in raced.items():
        if "failed" in figures:
            raise Failed(f"{name}: {figures['failed']}")
    return {
        name.rpartition("-")[2]: {
            "seconds": median(figures["seconds"]),
            "passes": figures["seconds"],
            "memory": figures["memory"],
            "own": figures["own"],
            "plan": figures["versions"]["plan"],
        }
        for name, figures in raced.items()
    }


def _parameters(job: Path) -> int:
    with np.load(job / "initial.npz", allow_pickle=False) as arrays:
        return sum(arrays[name].size for name in arrays.files)
