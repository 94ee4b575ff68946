"""What a person sees of a flow: bars for progress at a terminal, lines in a log, and what else a stage says."""

import logging
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tasks import progress

SILENT = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""Environment that keeps Prefect from writing the log to the console too; read when Prefect is imported."""
NOISE = (
    "Beginning ", "Finished in state", "Created task run", "Encountered exception", "Task run failed", "View at ",
    "Running stage ", "> python ", "Generating lock file", "Updating lock file", "Use `dvc push`",
    "Successfully registered model", "Registered model ", "Created version ",
)  # fmt: skip
"""How lines of Prefect, DVC and MLflow begin that say nothing which the stages and the summary do not."""
REFUSED = "error: "
"""How a stage begins to say why it ends; what follows is the error with which the run ends, and is shown there."""
WIDE = 1000
"""Characters of a line that another program reads: none may be broken in two."""
LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class Display(logging.Handler):
    """Shows a flow's log for the block; Prefect's own lines on the console are silenced by :data:`SILENT`."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console
        columns = (TextColumn("[bold]{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("[dim]{task.fields[rest]}"), console=console)
        self.known: dict[tuple[str, str], TaskID] = {}
        self.refused = False

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.refused |= line.startswith(REFUSED)
        if self.refused or line.startswith(NOISE):
            return
        step = progress.parse(line) if self.bars.console.is_terminal else None
        if step is None:
            who = getattr(record, "task_run_name", None) or "fedloom"
            style = "red" if record.levelno >= logging.ERROR else "dim"
            self.bars.console.print(f"{who:>10} │ {line}", style=style, markup=False, highlight=False)
            return
        key = (step.stage, step.unit)
        if key not in self.known:
            self.known[key] = self.bars.add_task(f"{step.stage} {step.unit}", total=step.total, rest="")
        self.bars.update(self.known[key], completed=step.done, total=step.total, rest=step.rest)

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        if self.bars.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bars.stop()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
