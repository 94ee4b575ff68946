"""The flow: a pipeline of `pipelines.yaml` as one Prefect run, with a task a stage.

DVC is the unit of execution: a task is one ``dvc repro -s STAGE`` in a process group of its own, and `dvc.yaml` alone
says what depends on what. Without overrides the stages run in this checkout, one run at a time; with overrides in a
throw-away worktree, whose results are kept as a DVC experiment named after the flow run.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from io import StringIO
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
from prefect.context import FlowRunContext
from prefect.states import Completed
from prefect.tasks import Task
from ruamel.yaml import YAML

from flows import checkout, pipelines, succession
from flows.form import differing, shown
from flows.overrides import merge, parse
from flows.pipelines import Stage
from flows.process import Failed, dvc, run, speak_for_itself
from flows.server import REPORTS
from tasks import progress, tracking
from tasks.config import Refused
from tasks.models.start import Champion
from tasks.params import Params
from tasks.promotion.rule import Promotion

BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")


RUNNING = "run-"
"""How the name of the lock begins that a run holds as long as it lives, followed by its id."""


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


@task(task_run_name="promotion")
def promotion(
    main: str, folder: str, rule: Promotion | None, stages: list[str], start: dict[str, str], parent: str
) -> State:
    """Decides by the pipeline's rule whether the released model becomes the champion; the state's name says it."""
    say = get_run_logger().info
    with checkout.exclusive(Path(main), "promotion", say):
        decision = succession.decided(Path(folder), rule, stages, start, parent, say)
    if decision is None:
        return Completed(name="Unchanged", message="nothing to decide")
    create_markdown_artifact(succession.told(decision), "promotion", decision.sentence)
    return Completed(name="Promoted" if decision.promoted else "Kept", message=decision.sentence)


def _called() -> str:
    """The name of a run. One that nobody has named is called after its pipeline and the time for which it was due."""
    run = FlowRunContext.get().flow_run
    pipeline = runtime.flow_run.parameters["pipeline"]
    if (run.deployment_id and not run.auto_scheduled) or run.name.startswith(f"{pipeline}-"):
        return run.name
    return f"{pipeline}-{run.expected_start_time.astimezone():%Y-%m-%d-%H%M}-{str(run.id)[:4]}"


ABOUT = """Five stages, a task each: partition, train, aggregate, attack, report. A stage runs if its parameters, its
code or its data have changed; otherwise it is kept or restored from the cache, and its state says so.

Start it from a deployment, which is a pipeline of `pipelines.yaml`. The artifacts of a run are its live progress, what
it changes, its numbers, and links to its report and to MLflow."""


@flow(name="fedloom", description=ABOUT, flow_run_name=_called)
def pipeline(
    pipeline: str = "default",
    overrides: dict[str, Any] | None = None,
    further: list[str] | None = None,
    stages: list[Stage] | None = None,
    force: bool = False,
    experiment: str | None = None,
) -> dict[str, Any]:
    """Runs a pipeline of `pipelines.yaml`.

    Args:
        pipeline: its name in pipelines.yaml
        overrides: parameters of this run, in the shape of params.yaml; those that are as they were count for nothing
        further: more of them, as on the command line after --set: FIELD=VALUE
        stages: stages wanted, with what they depend on; none means those of the pipeline
        force: run the wanted stages even where nothing has changed
        experiment: run in a copy of the checkout even without overrides, and keep the run under this name

    Returns the run's name, what each stage did and how long it took, and the path of the report if there is one.
    """
    speak_for_itself()
    say = get_run_logger().info
    if "DVC_STAGE" in os.environ:
        raise Refused("flow", None, "was started from within a stage, which would wait for itself")
    main = checkout.root()
    chosen = pipelines.pick(pipeline, pipelines.load(main))
    own = shown(checkout.resolve(main, chosen.changes, f"pipelines.yaml: pipelines.{pipeline}"))
    typed = merge(differing(overrides or {}, own), parse(further or ()))
    changes = merge(chosen.changes, typed)
    settings = checkout.resolve(main, changes, f"params.yaml with the overrides of this run ({pipeline})")
    if isinstance(settings.model.start, Champion):
        # Who that is gets written into the parameters of the run, which are not those of the checkout then.
        changes = merge(changes, {"model": {"start": settings.model.start.model_dump(mode="json")}})
    checkout.check(main)
    name = experiment or _name(main)
    tags = {"prefect.flow_run_id": str(runtime.flow_run.id), "fedloom.pipeline": pipeline, "fedloom.run": name}
    tags["mlflow.note.content"] = f"{chosen.description}\n\n{_told(typed)}\n\n[Open the run in Prefect]({_page()})"
    create_markdown_artifact(_told(typed), "changes", "What this run changes")
    with (
        checkout.exclusive(main, f"{RUNNING}{runtime.flow_run.id}", say),
        tracking.pipeline_run(name, settings, tags) as parent,
        _place(main, name, changes, settings, say, not (changes or experiment)) as folder,
    ):
        start = succession.resolved(folder, settings, say)
        wanted = list(stages or chosen.stages)
        outcomes = {}
        for planned in checkout.plan(folder, wanted):
            forced = force and (not wanted or planned.name in wanted)
            begun = time.monotonic()
            state = stage(planned.name, str(folder), forced, planned.stale, parent, return_state=True)
            state.result()
            outcomes[planned.name] = (str(state.name).lower(), time.monotonic() - begun)
        if parent and settings.aggregate.registry and "aggregate" in outcomes:
            done = str(main), str(folder), chosen.promote, list(outcomes), start, parent
            promotion(*done, return_state=True).result()
        report = checkout.publish_report(main, folder, name)
        numbers = checkout.numbers(folder)
        if parent:
            tracking.conclude(parent, numbers, report)
        _show(outcomes, numbers, report, parent)
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
def _place(
    main: Path, name: str, changes: dict[str, Any], settings: Params, say: checkout.Say, here: bool
) -> Iterator[Path]:
    """The folder to run in, the checkout itself if ``here``.

    Runs with the same parameters wait for each other: the second finds all in the cache.
    """
    with contextlib.ExitStack() as stack:
        if here:
            stack.enter_context(checkout.exclusive(main, "checkout", say))
        stack.enter_context(checkout.exclusive(main, f"params-{checkout.fingerprint(settings)}", say))
        if here:
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


def _told(typed: dict[str, Any]) -> str:
    """What was asked for, in Markdown: the UI keeps all parameters of a form, whether they were changed or not."""
    if not typed:
        return "The parameters of the pipeline, as they stand."
    text = StringIO()
    YAML().dump(typed, text)
    return f"```yaml\n{text.getvalue()}```"


def _page() -> str:
    """Where the Prefect UI shows this run."""
    api = os.environ.get("PREFECT_API_URL", "")
    return f"{api.removesuffix('/api')}/runs/flow-run/{runtime.flow_run.id}"


def _show(outcomes: dict[str, tuple[str, float]], numbers: dict, report: Path | None, parent: str | None) -> None:
    rows = [{"stage": name, "outcome": what, "seconds": f"{s:.1f}"} for name, (what, s) in outcomes.items()]
    create_table_artifact(rows, "stages", "What each stage did")
    if numbers:
        shown = [
            {"number": name, "value": f"{v:.4g}" if isinstance(v, float) else str(v)}
            for name, v in numbers.items()
            if v is not None
        ]
        create_table_artifact(shown, "summary", "The numbers of this run")
    if report and os.environ.get(REPORTS):
        create_link_artifact(f"{os.environ[REPORTS]}/{report.name}", "Open the report", "report", str(report))
    elif report:
        create_markdown_artifact(f"The report is `{report}`.", "report", "The report of this run")
    if parent:
        create_link_artifact(tracking.run_url(parent), "Open the run in MLflow", "mlflow", "while `fedloom up` runs")
