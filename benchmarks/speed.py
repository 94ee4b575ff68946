"""The same job through every contender, in turns, in one run."""

import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks import memory
from benchmarks.environments import FEDJAX, FLOWER, PFL, Peer, interpreter
from benchmarks.workloads import CACHE, ROOT, SEED, WORKLOADS, Workload, prepare
from tasks import models, tree
from tasks.partition.federation import Federation

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PLAIN = "plain-1"
"""The contender whose model the others' are compared with, so it comes first."""
PATIENCE = 600
"""Seconds without an answer after which a contender is given up."""
QUIET = {
    "DO_NOT_TRACK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Nothing calls home, and everybody runs on the CPU."""
FOREIGN = ("OMP_NUM_THREADS", "RAY_ADDRESS")
"""Settings of the user's shell that would change who does the work."""


@dataclass(frozen=True)
class Contender:
    """Who runs the job: ``python -m benchmarks.contenders.<module> JOB <options>``, in the peer's environment if it is
    one. ``threads`` limits PyTorch's threads from outside; 0 leaves them to the contender. ``skips`` names the
    workloads that it cannot run, or on which it would be the same as another."""

    name: str
    title: str
    module: str
    options: tuple[str, ...] = ()
    peer: Peer | None = None
    threads: int = 0
    skips: str = ""


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("plain-1", "plain loop, 1 thread", "plain", threads=1),
        Contender("plain-all", "plain loop, all threads", "plain"),
        Contender("fedloom", "Fedloom, workers: 0", "fedloom"),
        Contender("fedloom-compiled", "Fedloom, workers: 0, compiled", "fedloom", ("--compile",), skips="cd"),
        Contender("fedloom-ray-1", "Fedloom, 1 Ray worker", "fedloom", ("--workers", "1")),
        Contender("fedloom-ray-2", "Fedloom, 2 Ray workers", "fedloom", ("--workers", "2")),
        Contender("flower", "Flower", "flower", peer=FLOWER),
        Contender("pfl", "pfl-research", "pfl", peer=PFL),
        Contender("fedjax", "FedJAX", "fedjax", peer=FEDJAX, skips="d"),
    )
}


class Failed(Exception):
    """A contender died or fell silent; the message ends with what it said last."""


class Running:
    """A contender at work on a job."""

    def __init__(self, contender: Contender, job: Path, workload: str):
        self.contender, self.log = contender, CACHE / "logs" / f"{workload}-{contender.name}.log"
        self.saved = self.log.with_suffix(".npz")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        python = interpreter(contender.peer) if contender.peer else Path(sys.executable)
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        threads = {"OMP_NUM_THREADS": str(contender.threads)} if contender.threads else {}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.contenders.{contender.module}", job, *contender.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            cwd=ROOT,
            env=inherited | QUIET | threads | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            problem = "has ended" if ready else f"did not answer for {PATIENCE} s"
            last = "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-12:])
            raise Failed(f"{self.contender.title} {problem}; {self.log} ends with\n{last}")
        return json.loads(line)

    def ask(self, order: int | Path) -> float:
        """Seconds that the contender took for so many rounds, or to save its model."""
        try:
            self.process.stdin.write(f"{order}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says so
        return self.answer()["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Lets it end by itself, and stops what is left of it."""
        family = memory.family(self.process.pid)
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in family[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def measure(names: Sequence[str], contenders: Sequence[str], rounds: int | None = None) -> Iterator[tuple[str, dict]]:
    """The figures of one workload after another, each with its name.

    ``rounds`` fixes how many a contender takes in a pass; without it each takes as many as fill the workload's time.
    """
    for name in names:
        workload = WORKLOADS[name]
        print(f"\n{name}: {workload.title}", flush=True)
        yield name, _workload(workload, [CONTENDERS[c] for c in contenders if name not in CONTENDERS[c].skips], rounds)


def _workload(workload: Workload, contenders: list[Contender], rounds: int | None) -> dict:
    job = prepare(workload)
    data = Federation.open(job)
    for old in (CACHE / "logs").glob(f"{workload.name}-*"):
        old.unlink()
    figures: dict[str, dict] = {}
    pace: dict[str, int] = {}
    with ExitStack() as stack:
        running: dict[str, Running] = {}
        for contender in contenders:
            try:
                one = stack.enter_context(Running(contender, job, workload.name))
                figures[contender.name], seconds = _started(one, workload, data)
            except (Failed, subprocess.CalledProcessError) as error:
                print(f"  {contender.title}: failed. {error}", flush=True)
                figures[contender.name] = {"failed": str(error).splitlines()[0]}
                continue
            running[contender.name] = one
            pace[contender.name] = rounds or max(1, round(workload.seconds / seconds))
        for number in range(workload.passes):
            for name, one in list(running.items()):
                try:
                    figures[name]["seconds"].append(one.ask(pace[name]) / pace[name])
                    figures[name]["memory"] = memory.peak(one.process.pid)
                except Failed as error:
                    print(f"  {one.contender.title}: failed. {error}", flush=True)
                    figures[name] = {"failed": str(error).splitlines()[0]}
                    del running[name]
            print(f"  pass {number + 1} of {workload.passes}", flush=True)
    samples = float(data.sizes.mean())
    about = {"title": workload.title, "clients": workload.clients, "cohort": workload.cohort, "judged": workload.judged}
    return about | {"samples": samples, "contenders": figures}


def _started(one: Running, workload: Workload, data: Federation) -> tuple[dict, float]:
    """A contender's figures at the start, and about how many seconds a round takes it."""
    versions = one.answer()["versions"]
    one.ask(workload.warmup)
    startup = time.perf_counter() - one.started
    left = workload.judged - workload.warmup
    seconds = one.ask(left) / left
    one.ask(one.saved)
    pace = f"about {workload.cohort / seconds:,.0f} clients/s"
    print(f"  {one.contender.title}: started in {startup:.1f} s, {pace}", flush=True)
    return {
        "startup": startup,
        "seconds": [],
        "memory": None,
        **_scores(one, workload, data),
        "versions": versions,
    }, seconds


def _scores(one: Running, workload: Workload, data: Federation) -> dict[str, float | None]:
    """What says that the work was the same: how good the model is, and how far it is from the plain loop's, as a share
    of how far training has brought that."""
    model, start = _weights(one.saved), _weights(data.path / "initial.npz")
    network = models.build(workload.model, data.meta.shape, data.meta.classes, SEED)
    losses, hits = models.score(network, model, torch.from_numpy(data.test_x), torch.from_numpy(data.test_y))
    plain = one.saved.with_name(f"{workload.name}-{PLAIN}.npz")
    distance = None
    if plain.exists():
        reference = _weights(plain)
        apart, moved = (tree.norm(tree.subtract(reference, other)) for other in (model, start))
        distance = float(apart / moved)
    return {"accuracy": float(hits.mean()), "loss": float(losses.mean()), "distance": distance}


def _weights(file: Path) -> tree.Tree:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        processor = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": len(os.sched_getaffinity(0)), "system": platform.system()}
