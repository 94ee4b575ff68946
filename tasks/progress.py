"""Progress of long work: a bar on a terminal, otherwise a plain line now and then that a machine can read too.

A line looks like ``[train] round 12/30 40% · accuracy 0.912 · 310 clients/s · 0:12 left``; :func:`parse` reads it back,
which is how a flow that sees only a stage's output shows its progress live.
"""

import re
import sys
import time
from typing import Any, NamedTuple

LINE = re.compile(r"\[(?P<stage>\w+)\] (?P<unit>\w+) (?P<done>\d+)/(?P<total>\d+) \d+%(?: · (?P<rest>.*))?$")
EVERY = 2.0
"""Seconds between two plain lines, so that a log stays readable."""


class Step(NamedTuple):
    """A progress line, read back."""

    stage: str
    unit: str
    done: int
    total: int
    rest: str

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total


def parse(line: str) -> Step | None:
    """The progress that a line of output tells of, or None for any other line."""
    found = LINE.search(line)
    if not found or int(found["total"]) < 1:
        return None
    return Step(found["stage"], found["unit"], int(found["done"]), int(found["total"]), found["rest"] or "")


def describe(numbers: dict[str, float | None]) -> str:
    """``{"accuracy": 0.912, "clients/s": 310}`` as a person writes it: ``accuracy 0.912 · 310 clients/s``."""
    shown = []
    for name, value in numbers.items():
        if value is not None:
            number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
            shown.append(f"{number} {name}" if name.endswith("/s") else f"{name.replace('_', ' ')} {number}")
    return " · ".join(shown)


class Progress:
    """The progress of one stage, written to standard error (a bar) or standard output (lines).

    Each kind of work (``unit``) of a stage has a bar and an estimate of the time left of its own.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self.started: dict[str, tuple[float, int]] = {}
        self.printed = -EVERY
        self.bar: Any = None
        self.bars: dict[str, Any] = {}

    def update(self, done: int, total: int, unit: str = "step", **numbers: float | None) -> None:
        """Says that ``done`` of ``total`` units are finished; ``numbers`` are shown beside it."""
        if sys.stderr.isatty():
            self._draw(done, total, unit, describe(numbers))
        else:
            self._print(done, total, unit, describe(numbers))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, done: int, total: int, unit: str, numbers: str) -> None:
        now = time.monotonic()
        begun, first = self.started.setdefault(unit, (now, done))
        if done < total and now - self.printed < EVERY:
            return
        self.printed = now
        left = (now - begun) / (done - first) * (total - done) if done > first else 0.0
        parts = [f"[{self.stage}] {unit} {done}/{total} {100 * done // max(total, 1)}%", numbers]
        if left:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        print(" · ".join(part for part in parts if part), flush=True)

    def _draw(self, done: int, total: int, unit: str, numbers: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        if self.bar is None:
            columns = (
                TextColumn("[bold]{task.fields[stage]}[/] {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
            )
            numbers_column = TextColumn("{task.fields[numbers]}")
            self.bar = Bars(*columns, TimeRemainingColumn(), numbers_column, console=Console(stderr=True))
            self.bar.start()
        if unit not in self.bars:
            self.bars[unit] = self.bar.add_task(unit, total=total, stage=self.stage, numbers="")
        self.bar.update(self.bars[unit], completed=done, total=total, numbers=numbers)
