"""The flow: a pipeline of `pipelines.yaml` as one Prefect run, with a task a stage.

DVC is the unit of execution: a task is one ``dvc repro -s STAGE`` in a process group of its own, and `dvc.yaml` alone
says what depends on what. Without overrides the stages run in this checkout, one run at a time; with overrides in a
throw-away worktree, whose results are kept as a DVC experiment named after the flow run.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows import checkout, pipelines
from flows.overrides import Overrides, given, merge
from flows.pipelines import Stage
from flows.process import Failed, dvc, run, say_into
from flows.server import LOG, REPORTS
from tasks import progress, tracking
from tasks.config import Refused
from tasks.params import Params

BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")


class StageFailed(RuntimeError):
    """A stage that refused its input or broke down; the message is the reason in the words of the stage."""


def _busy(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether another process holds what the stage needs: the one failure that waiting mends."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Exception) and any(sign in str(error) for sign in BUSY)


@task(task_run_name="{name}", retries=4, retry_delay_seconds=[5, 15, 30, 60], retry_condition_fn=_busy)
def stage(name: str, folder: str, force: bool, stale: bool, parent: str | None) -> State:
    """Runs one stage unless DVC can keep or restore its outputs; the state's name says which of the three it was."""
    if not (stale or force):
        return Completed(name="Unchanged", message=f"{name} is as it was")
    ids = {tracking.FLOW_RUN: str(runtime.flow_run.id), tracking.TASK_RUN: str(runtime.task_run.id)}
    environment = ids | ({tracking.PARENT: parent} if parent else {})
    live = _Live(name)
    try:
        output = run(dvc("repro", "-s", *(["-f"] if force else []), name), Path(folder), environment, live)
    except Failed as failed:
        raise StageFailed(_reason(name, failed)) from None
    if any("didn't change" in line for line in output):
        return Completed(name="Unchanged", message=f"{name} is as it was")
    if any("is cached - skipping" in line for line in output):
        return Completed(name="Restored", message=f"{name} was restored from the cache")
    return Completed(name="Ran", message=f"{name} ran")


@flow(name="fedloom", description=__doc__)
def pipeline(
    pipeline: str = "default",
    overrides: Overrides = Overrides(),  # noqa: B008 - never written to
    stages: list[Stage] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Runs a pipeline of `pipelines.yaml`.

    Args:
        pipeline: its name in pipelines.yaml
        overrides: what differs from the pipeline's own parameters in this run
        stages: stages wanted, with what they depend on; none means those of the pipeline
        force: run the wanted stages even where nothing has changed

    Returns the run's name, what each stage did and how long it took, and the path of the report if there is one.
    """
    if LOG in os.environ:
        # Not through the pipe of the runner, with which the run would break.
        say_into(Path(os.environ[LOG]))
    say = get_run_logger().info
    if "DVC_STAGE" in os.environ:
        raise Refused("flow", None, "was started from within a stage, which would wait for itself")
    main = checkout.root()
    chosen = pipelines.pick(pipeline, pipelines.load(main))
    changes = merge(chosen.changes, given(overrides))
    settings = checkout.resolve(main, changes, f"params.yaml with the overrides of this run ({pipeline})")
    checkout.check(main)
    name = _name(main)
    tags = {"prefect.flow_run_id": str(runtime.flow_run.id), "fedloom.pipeline": pipeline, "fedloom.run": name}
    with (
        tracking.pipeline_run(name, settings, tags) as parent,
        _place(main, name, changes, settings, say) as folder,
    ):
        wanted = list(stages or chosen.stages)
        outcomes = {}
        for planned in checkout.plan(folder, wanted):
            forced = force and (not wanted or planned.name in wanted)
            begun = time.monotonic()
            state = stage(planned.name, str(folder), forced, planned.stale, parent, return_state=True)
            state.result()
            outcomes[planned.name] = (str(state.name).lower(), time.monotonic() - begun)
        report = checkout.publish_report(main, folder, name)
        _show(outcomes, checkout.numbers(folder), report, parent)
    return {"run": name, "stages": outcomes, "report": str(report) if report else None}


def drain() -> None:
    """Sends what is still queued for the server, which is about to be stopped: at exit nobody would listen."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=30)


def _name(main: Path) -> str:
    """The run's name in the letters of an experiment, and not taken yet."""
    name = checkout.slug(runtime.flow_run.name)
    return f"{name}-{str(runtime.flow_run.id)[:8]}" if checkout.experiment_exists(main, name) else name


@contextlib.contextmanager
def _place(main: Path, name: str, changes: dict[str, Any], settings: Params, say: checkout.Say) -> Iterator[Path]:
    """The folder to run in. Runs with the same parameters wait for each other: the second finds all in the cache."""
    with contextlib.ExitStack() as stack:
        if not changes:
            stack.enter_context(checkout.exclusive(main, "checkout", say))
        stack.enter_context(checkout.exclusive(main, f"params-{checkout.fingerprint(settings)}", say))
        if not changes:
            yield main
        else:
            yield stack.enter_context(checkout.worktree(main, name, changes, say))


class _Live:
    """Passes a stage's output on to the log, and its progress to an artifact that the UI shows live."""

    def __init__(self, name: str):
        self.name, self.log = name, get_run_logger()
        self.artifact: Any = None
        self.updated = 0.0

    def __call__(self, line: str) -> None:
        self.log.info(line)
        step = progress.parse(line)
        if step is None or (time.monotonic() - self.updated < 1 and step.done < step.total):
            return
        self.updated = time.monotonic()
        text = f"{step.unit} {step.done} of {step.total}" + (f" · {step.rest}" if step.rest else "")
        if self.artifact is None:
            self.artifact = create_progress_artifact(step.percent, f"{self.name}-progress", text)
        else:
            update_progress_artifact(self.artifact, step.percent, text)


def _reason(name: str, failed: Failed) -> str:
    """What the stage said was wrong; the last lines of its output where it said nothing readable."""
    said = [i for i, line in enumerate(failed.output) if line.startswith("error: ")]
    if not said:
        return f"{name} failed:\n" + "\n".join(failed.output[-20:])
    # DVC adds what command it was that failed, which the reader knows.
    lines = [
        line for line in failed.output[said[0] :] if not line.startswith(("ERROR: failed to reproduce", "Running"))
    ]
    return "\n".join(lines).removeprefix("error: ")


def _show(outcomes: dict[str, tuple[str, float]], numbers: dict, report: Path | None, parent: str | None) -> None:
    rows = [{"stage": name, "outcome": what, "seconds": f"{s:.1f}"} for name, (what, s) in outcomes.items()]
    create_table_artifact(rows, "stages", "What each stage did")
    if numbers:
        shown = [
            {"number": name, "value": f"{v:.4g}" if isinstance(v, float) else str(v)} for name, v in numbers.items()
        ]
        create_table_artifact(shown, "summary", "The numbers of this run")
    if report and os.environ.get(REPORTS):
        create_link_artifact(f"{os.environ[REPORTS]}/{report.name}", "Open the report", "report", str(report))
    elif report:
        create_markdown_artifact(f"The report is `{report}`.", "report", "The report of this run")
    if parent:
        create_link_artifact(tracking.run_url(parent), "Open the run in MLflow", "mlflow", "while `fedloom up` runs")
