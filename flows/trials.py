"""The cells of a sweep with what is known of each: whether it is finished, and what came of it.

A cell is kept as a DVC experiment whose name says what its numbers depend on. Nothing else is written down: a cell is
finished where there is an experiment of its name.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from flows import checkout, grid, pipelines
from flows.grid import Cell
from flows.pipelines import Pipelines, Stage
from tasks import tracking
from tasks.artifacts import write_text
from tasks.report.comparison import Result, compare


@dataclasses.dataclass
class Trial:
    """A cell, its experiment, the stages that it consists of, and what came of it so far."""

    cell: Cell
    experiment: str
    stages: tuple[Stage, ...]
    result: Result
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    passed: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def folder(self) -> Path:
        """What a board knows it by."""
        return Path(self.experiment)

    @property
    def finished(self) -> bool:
        return self.result.outcome == "finished"

    @property
    def missing(self) -> list[Stage]:
        """The stages still to run."""
        return [] if self.finished else [stage for stage in self.stages if stage not in self.passed]

    def fail(self, reason: str) -> None:
        self.result = self.result._replace(outcome="failed", reason=reason)


def plan(main: Path, name: str, known: Pipelines) -> list[Trial]:
    """The trials of a sweep for the code and the data as they are now."""
    sweep = pipelines.pick_sweep(name, known.sweeps)
    checkout.check(main)
    cells, version = grid.cells(main, name, known), checkout.version(main)
    wanted = known.pipelines[sweep.pipeline].stages
    planned = {step.name for step in checkout.plan(main, wanted)} if wanted else set(get_args(Stage))
    stages = tuple(stage for stage in get_args(Stage) if stage in planned)
    trials = []
    for cell in cells:
        trial = Trial(cell, cell.experiment(version), stages, Result(cell.label, cell.values, "waiting"))
        if checkout.experiment_exists(main, trial.experiment):
            finish(main, trial)
        trials.append(trial)
    return trials


def finish(main: Path, trial: Trial) -> None:
    """Takes in what came of a cell that is finished, from its experiment."""
    # Of a stage that is no part of it the experiment may have the numbers of another run, as they are in git.
    numbers = {stage: of for stage, of in checkout.recorded(main, trial.experiment).items() if stage in trial.stages}
    report = checkout.report_of(main, trial.experiment) if "report" in trial.stages else None
    run = tracking.tagged(trial.experiment, {"fedloom.sweep": trial.cell.sweep})
    trial.result = trial.result._replace(
        outcome="finished",
        reason="",
        metrics=numbers,
        experiment=trial.experiment,
        report=report.name if report else None,
        run=tracking.run_url(run) if run else None,
    )


def publish(main: Path, name: str, known: Pipelines, trials: Sequence[Trial]) -> Path:
    """Writes the comparison of what is finished so far to `reports/`, where the cells' own reports are."""
    page = main / "reports" / f"{name}.html"
    write_text(page, compare(name, known.sweeps[name].description, [trial.result for trial in trials]))
    return page
