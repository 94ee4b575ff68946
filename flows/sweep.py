"""The flow that runs a sweep of `pipelines.yaml`: its cells side by side, and the page that compares them.

A cell is an ordinary run of its pipeline, with its own flow run under that of the sweep, kept as a DVC experiment whose
name says what its numbers depend on. So a cell that is finished is not run again, a sweep that was stopped goes on, and
one that was edited runs what is new in it.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import (
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from prefect.states import Crashed, Pending
from prefect.tasks import Task
from rich.console import Console

from flows import checkout, overrides, pipelines
from flows.board import Board
from flows.display import REFUSED
from flows.pipeline import RUNNING, pipeline
from flows.pipelines import Pipelines
from flows.process import Failed, follow, speak_for_itself
from flows.server import REPORTS
from flows.trials import Trial, finish, plan, publish
from tasks import progress
from tasks.config import Refused
from tasks.report.comparison import table

CONSOLE: ContextVar[Console] = ContextVar("console", default=Console(quiet=True))  # noqa: B039 - never written to
"""The terminal of the person who looks on, if any does."""


class CellsFailed(RuntimeError):
    """Some cells broke down; the others are finished, and the comparison is written."""


@flow(name="sweep", description=__doc__, flow_run_name="{name}")
async def sweep(name: str, parallel: int | None = None) -> dict[str, Any]:
    """Runs what is missing of a sweep of `pipelines.yaml`, and compares its cells.

    Args:
        name: its name in pipelines.yaml
        parallel: cells at a time; none means as many as pipelines.yaml says

    Returns the cells with their numbers in words, as columns and rows, and the path of the comparison.
    """
    speak_for_itself()
    say = get_run_logger().info
    if "DVC_STAGE" in os.environ:
        raise Refused("sweep", None, "was started from within a stage, which would wait for itself")
    main = checkout.root()
    known = pipelines.read(main)
    entry = pipelines.pick_sweep(name, known.sweeps)
    at_once = parallel or entry.resources.parallel
    with (
        checkout.exclusive(main, f"{RUNNING}{runtime.flow_run.id}", say),
        checkout.exclusive(main, f"sweep-{name}", say),
    ):
        trials = plan(main, name, known)
        with Board(CONSOLE.get(), trials) as board:
            await _Sweep(main, name, known, trials, board, at_once).run()
        page = publish(main, name, known, trials)
    results = [trial.result for trial in trials]
    header, rows = table(results)
    await _show([dict(zip(header, row, strict=True)) for row in rows], page)
    if failed := [f"\n  - {result.label}: {result.reason}" for result in results if result.outcome == "failed"]:
        raise CellsFailed(f"{len(failed)} of {len(results)} cells failed:{''.join(failed)}\nThe comparison is {page}")
    return {"columns": header, "rows": rows, "report": str(page)}


class _Sweep:
    """The cells of one sweep at work, some at a time."""

    def __init__(self, main: Path, name: str, known: Pipelines, trials: Sequence[Trial], board: Board, at_once: int):
        self.main, self.name, self.known, self.trials, self.board = main, name, known, trials, board
        self.entry, self.gate, self.say = known.sweeps[name], asyncio.Semaphore(at_once), get_run_logger().info
        self.share = max(len(os.sched_getaffinity(0)) // at_once, 1)
        self.version = checkout.version(main)
        self.artifact: UUID | None = None

    async def run(self) -> None:
        """Runs every cell that is not finished. One that fails stops no other."""
        todo = [trial for trial in self.trials if not trial.finished]
        self.say(f"{len(self.trials)} cells, {len(self.trials) - len(todo)} of them finished before")
        await self._tell()
        ahead: dict[str, asyncio.Task] = {}
        async with asyncio.TaskGroup() as group:
            for trial in todo:
                # Cells that train the same wait for the first of them, which leaves the training in the cache.
                first = ahead.get(trial.cell.training)
                task = group.create_task(self._cell(trial, first))
                ahead.setdefault(trial.cell.training, task)

    async def _cell(self, trial: Trial, first: asyncio.Task | None) -> None:
        if first is not None:
            await asyncio.wait([first])
        async with self.gate:
            try:
                await self._work(trial)
                self._pass(trial, len(trial.missing))
                finish(self.main, trial)
                self.board.finish(trial)
            except (Failed, Refused) as failed:
                trial.fail(_reason(failed))
                self.board.fail(trial)
            self.say(f"{trial.label}: {trial.result.outcome}")
            publish(self.main, self.name, self.known, self.trials)
            await self._tell()

    async def _work(self, trial: Trial) -> None:
        """One cell, in a process of its own."""
        if checkout.version(self.main) != self.version:
            mend = f"Run `fedloom sweep {self.name}` again: it runs every cell on what is there now"
            raise Refused(f"sweep {self.name}", None, "code or data were changed since it began", mend)
        begun = asyncio.get_running_loop().time()
        async with get_client() as client:
            identity = await self._register(client, trial)
            # What Prefect tells a process of the flow run that it is for holds for the sweep, not for the cell.
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            environment = settings | {"OMP_NUM_THREADS": str(self.share)} | inherited | {"PYTHONUNBUFFERED": "1"}
            command = [sys.executable, "-m", "flows.child", str(identity)]
            try:
                await follow(command, self.main, environment, lambda line: self._hear(trial, line))
            except Failed:
                state = (await client.read_flow_run(identity)).state
                if state is None or not state.is_final():
                    # It was killed before it could say so.
                    await client.set_flow_run_state(identity, Crashed(message="its process was killed"), force=True)
                raise
        if not checkout.experiment_exists(self.main, trial.experiment):
            raise Refused(trial.label, trial.experiment, "ended without keeping this experiment")
        trial.seconds["whole"] = asyncio.get_running_loop().time() - begun

    async def _register(self, client: Any, trial: Trial) -> UUID:
        """The cell's flow run, which its process carries out, under that of the sweep."""
        parent = await client.create_task_run(
            Task(fn=pipeline.fn, name="cell"),
            runtime.flow_run.id and UUID(str(runtime.flow_run.id)),
            dynamic_key=trial.experiment,
            name=trial.label,
            state=Pending(),
        )
        created = await client.create_flow_run(
            pipeline,
            name=trial.experiment,
            parameters={
                "pipeline": self.entry.pipeline,
                "further": [f"{section}={json.dumps(value)}" for section, value in self._changes(trial).items()],
                "experiment": trial.experiment,
            },
            tags=[f"sweep:{self.name}"],
            parent_task_run_id=parent.id,
        )
        return created.id

    def _changes(self, trial: Trial) -> dict[str, Any]:
        """What the cell changes, and how many workers it gets, so that cells side by side share the cores."""
        base = self.known.pipelines[self.entry.pipeline].changes
        workers = self.entry.resources.workers
        if workers is None:
            said = checkout.resolve(self.main, overrides.merge(base, trial.cell.changes)).train.engine.workers
            # One core is better used by the stage itself than by a Ray of its own.
            workers = said if said != "auto" else self.share if self.share > 1 else 0
        return overrides.merge(trial.cell.changes, {"train": {"engine": {"workers": workers}}})

    def _hear(self, trial: Trial, line: str) -> None:
        """Takes in a line of a cell's output; one of a later stage says that those before it have passed."""
        step = progress.parse(line)
        if step and step.stage in trial.missing:
            self._pass(trial, trial.missing.index(step.stage))
        self.board.hear(trial, line)

    def _pass(self, trial: Trial, count: int) -> None:
        for stage in trial.missing[:count]:
            trial.passed.append(stage)
            self.board.done(trial, stage)

    async def _tell(self) -> None:
        """Shows in the UI how far the sweep is."""
        ended = sum(trial.result.outcome != "waiting" for trial in self.trials)
        share, text = 100.0 * ended / len(self.trials), f"{ended} of {len(self.trials)} cells"
        if self.artifact is None:
            self.artifact = await acreate_progress_artifact(share, "sweep-progress", text)
        else:
            await aupdate_progress_artifact(self.artifact, share, text)


def _reason(failed: Failed | Refused) -> str:
    """Why a cell failed, in the words of its stage where it said something."""
    if isinstance(failed, Refused):
        return str(failed)
    said = [i for i, line in enumerate(failed.output) if line.startswith(REFUSED)]
    lines = failed.output[said[-1] :] if said else failed.output[-20:]
    return "\n".join(lines).removeprefix(REFUSED).strip() or f"ended with code {failed.code}"


async def _show(rows: list[dict[str, str]], page: Path) -> None:
    """The cells and the way to their comparison, in the UI."""
    await acreate_table_artifact(rows, "cells", "What came of each cell")
    if os.environ.get(REPORTS):
        await acreate_link_artifact(
            f"{os.environ[REPORTS]}/{page.name}", "Open the comparison", "comparison", str(page)
        )
    else:
        await acreate_markdown_artifact(f"The comparison is `{page}`.", "comparison", "The comparison of this sweep")
