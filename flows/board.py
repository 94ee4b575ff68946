"""What a person sees of a replication or a sweep: a bar for all that is to be done, and one for each cell at work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.pipelines import Stage
from tasks import progress


class Shown(Protocol):
    """A run of some stages in a folder of its own."""

    folder: Path

    @property
    def label(self) -> str: ...

    @property
    def missing(self) -> list[Stage]: ...

    @property
    def seconds(self) -> dict[str, float]: ...


class Board:
    """Bars with the time left. A finished cell is also a line, which is all that is written without a terminal."""

    def __init__(self, console: Console, todo: Sequence[Shown]):
        self.console, self.left = console, sum(len(cell.missing) for cell in todo)
        self.reused = sum(not cell.missing for cell in todo)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
        self.bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.whole = self.bars.add_task("all", total=max(self.left, 1))
        self.known: dict[Path, TaskID] = {}
        self.parts: dict[Path, float] = {}
        self.stages = 0

    def hear(self, cell: Shown, line: str) -> None:
        """Takes in a line that a stage wrote."""
        step = progress.parse(line)
        if step is not None:
            self._move(cell, f"{cell.label} · {step.stage}", step.percent / 100)

    def done(self, cell: Shown, stage: Stage) -> None:
        """A stage of the cell has ended."""
        self.stages += 1
        self._move(cell, f"{cell.label} · {stage}", 0.0)

    def finish(self, cell: Shown) -> None:
        """The cell has ended."""
        self._drop(cell)
        self.say(f"{cell.label}: {sum(cell.seconds.values()):.0f} s")

    def fail(self, cell: Shown) -> None:
        """The cell has ended with an error."""
        self._drop(cell)
        self.say(f"{cell.label}: failed")

    def say(self, line: str) -> None:
        self.bars.console.print(line, style="dim", markup=False, highlight=False)

    def _move(self, cell: Shown, text: str, part: float) -> None:
        if cell.folder not in self.known:
            self.known[cell.folder] = self.bars.add_task(text, total=1.0)
        self.parts[cell.folder] = part
        self.bars.update(self.known[cell.folder], description=text, completed=part)
        self.bars.update(self.whole, completed=self.stages + sum(self.parts.values()))

    def _drop(self, cell: Shown) -> None:
        self.parts.pop(cell.folder, None)
        if cell.folder in self.known:
            self.bars.remove_task(self.known.pop(cell.folder))

    def __enter__(self) -> Self:
        if self.reused:
            self.say(f"{self.reused} cells are unchanged and not repeated")
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()
