"""Contenders at work on their jobs, and how they take turns."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks import memory
from benchmarks.environments import Peer, interpreter
from benchmarks.workloads import CACHE, ROOT
from tasks.config import Refused

PATIENCE = 600
"""Seconds without an answer after which a contender is given up."""
GLANCE = 0.2
"""Seconds of work from which a contender's pace is told."""
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
    """Who runs a job: ``python -m benchmarks.contenders.<module> JOB <options>``, in the peer's environment if it is
    one. ``threads`` limits PyTorch's threads from outside; 0 leaves them to the contender. ``skips`` names the
    workloads that it cannot run, or on which it would be the same as another."""

    name: str
    title: str
    module: str
    options: tuple[str, ...] = ()
    peer: Peer | None = None
    threads: int = 0
    skips: str = ""


class Failed(Exception):
    """A contender died or fell silent; the message ends with what it said last."""


class Running:
    """A contender at work on the job in the folder ``job``. What it says goes into a log named after ``about``."""

    def __init__(self, contender: Contender, job: Path, about: str):
        self.contender, self.log = contender, CACHE / "logs" / f"{about}-{contender.name}.log"
        self.saved = self.log.with_suffix(".npz")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        python = interpreter(contender.peer) if contender.peer else Path(sys.executable)
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        threads = {"OMP_NUM_THREADS": str(contender.threads)} if contender.threads else {}
        self.started = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.contenders.{contender.module}", job, *contender.options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
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

    def pace(self) -> float:
        """About how many seconds a round takes."""
        rounds = 1
        while (seconds := self.ask(rounds)) < GLANCE:
            rounds *= 4
        return seconds / rounds

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
        self.process.stdout.close()
        for pid in family[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Timing(NamedTuple):
    """``warmup`` rounds count as start-up; each of ``passes`` gives every contender in turn about ``seconds``, at least
    a round, or exactly ``rounds`` where that is given."""

    warmup: int
    passes: int
    seconds: float
    rounds: int | None = None


class Entrant(NamedTuple):
    """A contender and the job that it is to do."""

    contender: Contender
    job: Path


def race(
    about: str, entrants: Sequence[Entrant], timing: Timing, judge: Callable[[Running], dict] = lambda _: {}
) -> dict[str, dict[str, Any]]:
    """The figures of every entrant, by the contender's name.

    ``startup`` in seconds, to the end of the warm-up; ``seconds`` a round, one number a pass; ``memory``, the bytes
    taken at most, and ``own``, those at the end that are no pages of files; ``versions``, what the contender says of
    itself; what ``judge`` says of it before the first pass; or ``failed``, why there are none of these. All start
    before the first is measured, and stay.
    """
    for old in (CACHE / "logs").glob(f"{about}-*"):
        old.unlink()
    figures: dict[str, dict[str, Any]] = {}
    pace: dict[str, int] = {}
    with ExitStack() as stack:
        running: dict[str, Running] = {}
        for contender, job in entrants:
            try:
                one = stack.enter_context(Running(contender, job, about))
                figures[contender.name] = _started(one, timing.warmup) | judge(one)
                seconds = one.pace()
            except (Failed, Refused, subprocess.CalledProcessError) as error:
                figures[contender.name] = _failed(contender, error)
                continue
            pace[contender.name] = timing.rounds or max(1, round(timing.seconds / seconds))
            running[contender.name] = one
            startup, taken = figures[contender.name]["startup"], 1000 * seconds
            print(f"  {contender.title}: started in {startup:.1f} s, a round takes {taken:,.1f} ms", flush=True)
        for _ in range(timing.passes):
            for name, one in list(running.items()):
                try:
                    figures[name]["seconds"].append(one.ask(pace[name]) / pace[name])
                    figures[name]["memory"] = memory.peak(one.process.pid)
                    figures[name]["own"] = memory.own(one.process.pid)
                except Failed as error:
                    figures[name] = _failed(one.contender, error)
                    del running[name]
    return figures


def _started(one: Running, warmup: int) -> dict[str, Any]:
    versions = one.answer()["versions"]
    one.ask(warmup)
    startup = time.perf_counter() - one.started
    return {"startup": startup, "seconds": [], "memory": None, "own": None, "versions": versions}


def _failed(contender: Contender, error: Exception) -> dict[str, Any]:
    print(f"  {contender.title}: failed. {error}", flush=True)
    return {"failed": str(error).splitlines()[0]}
