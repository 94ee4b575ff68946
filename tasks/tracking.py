"""MLflow: one parent run a pipeline run, one child run a stage, tied by tags to git, DVC and Prefect.

Where: ``mlflow.db`` (SQLite) and ``mlartifacts/`` in the main checkout, also for stages that run in a git worktree; or
what MLflow's own variables name (:func:`store`, :func:`artifact_root`): another database, an object store, a server.
How much: ``FEDLOOM_TRACKING=off`` turns it off. When the database is locked, unwritable or damaged, one line says so
and the stage goes on without: every number is in the stage's own outputs too, and a training run is worth more than
its log.

This is the one module under ``tasks`` that knows DVC, and only to learn the key under which DVC files the stage that it
is running (:func:`stage_key`).
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from tasks.progress import Progress

EXPERIMENT = "fedloom"
FLUSH_SECONDS = 5.0
FLUSH_POINTS = 1000
PARENT, FLOW_RUN, TASK_RUN = "FEDLOOM_MLFLOW_PARENT", "FEDLOOM_FLOW_RUN_ID", "FEDLOOM_TASK_RUN_ID"
"""Environment variables by which the flow hands its ids to a stage, which knows nothing of Prefect."""

UI = "FEDLOOM_MLFLOW_URL"
"""Environment variable: where a browser finds MLflow's UI."""

Point = tuple[str, float, int, int]
"""A metric's name, its value, the time in milliseconds, the step."""

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What keeps every dependency from calling home; set before any of them is imported."""


def quiet() -> None:
    """Turns off the telemetry of every dependency, in this process and in those that it starts."""
    os.environ.update(QUIET)


def git(*arguments: str, folder: Path | None = None) -> str | None:
    """The output of a git command, or None without git or outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def main_checkout() -> Path:
    """The folder of the main checkout, also when called in a worktree; the current folder outside git."""
    common = git("rev-parse", "--path-format=absolute", "--git-common-dir")
    return Path(common).parent if common else Path.cwd()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: ``{"train": {"uplink": [{"name": "clip"}]}}`` has ``train.uplink.0.name``."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, list | tuple) and value:
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    nested = (flatten(item, f"{prefix}.{name}" if prefix else str(name)) for name, item in value.items())
    return {name: item for part in nested for name, item in part.items()}


class Tracker:
    """Shows progress and records nothing: what a stage gets when tracking is off."""

    run_id: str | None = None

    def __init__(self, stage: str):
        self.stage = stage
        self.bar = Progress(stage)

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Records numbers, at a ``step`` (a round) where they form a series; what is no number is left out."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Records settings; nested ones get dotted names."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Records what the run can be found by."""

    def artifact(self, path: Path, name: str | None = None) -> None:
        """Keeps a copy of a file or folder, under the folder ``name`` of the run."""

    def progress(self, done: int, total: int, unit: str = "step", **numbers: float | None) -> None:
        """Shows that ``done`` of ``total`` units (rounds, say) are finished, with a few numbers beside it."""
        self.bar.update(done, total, unit, **numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.close()


class MLflowTracker(Tracker):
    """Records a stage as a child run, which is MLflow's active run while the stage works.

    Numbers are gathered and sent in batches: a thousand points cost SQLite as much as six single calls.
    """

    def __init__(self, stage: str, settings: BaseModel):
        super().__init__(stage)
        self.settings = settings
        self.parent: str | None = None
        self.waiting: list[Point] = []
        self.flushed = time.monotonic()
        self.alive = True

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        self.waiting += _points(values, step)
        if len(self.waiting) >= FLUSH_POINTS or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._try(self._flush)

    def params(self, values: Mapping[str, Any]) -> None:
        self._try(lambda: _log_params(self.run_id, values))

    def tags(self, values: Mapping[str, str]) -> None:
        self._try(lambda: _mlflow().set_tags(dict(values)))

    def artifact(self, path: Path, name: str | None = None) -> None:
        keep = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self._try(lambda: getattr(_mlflow(), keep)(str(path), name))

    def __enter__(self) -> Self:
        self._try(self._start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        super().__exit__(kind, error, trace)
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        if error is not None:
            self.tags({"fedloom.error": f"{type(error).__name__}: {error}"[:4000]})
        self._try(lambda: self._end(status))

    def _start(self) -> None:
        self.parent = os.environ.get(PARENT) or _group(self.settings)
        tags = {**_revision(), **_flow(), "dvc.stage": self.stage}
        if "DVC_STAGE" in os.environ:
            tags["dvc.key"] = dvc_key(os.environ["DVC_STAGE"])
        mlflow = _mlflow()
        # With the name of the whole: a chart of several runs has nothing else to tell them apart.
        whole = mlflow.MlflowClient().get_run(self.parent).info.run_name
        self.run_id = mlflow.start_run(
            experiment_id=_experiment(), run_name=f"{whole} {self.stage}", parent_run_id=self.parent, tags=tags
        ).info.run_id
        section = getattr(self.settings, self.stage, None)
        if section is not None:
            _log_params(self.run_id, {self.stage: section})

    def _flush(self) -> None:
        points, self.waiting, self.flushed = self.waiting, [], time.monotonic()
        _log_metrics(self.run_id, points)

    def _end(self, status: str) -> None:
        self._flush()
        _mlflow().end_run(status)
        if PARENT not in os.environ and self.parent:
            _mlflow().MlflowClient().set_terminated(self.parent, status)

    def _try(self, action: Callable[[], Any]) -> None:
        """Does ``action``; the first failure is said, and ends the tracking of this stage but not the stage."""
        if not self.alive:
            return
        try:
            action()
        except Exception as error:
            _complain(error)
            if self.run_id:
                # Or MLflow would try to end it when the process exits, and fail again.
                with contextlib.suppress(Exception):
                    _mlflow().end_run("FAILED")
            self.alive, self.run_id = False, None


def open_tracker(stage: str, settings: BaseModel) -> Tracker:
    """The tracker of a stage that runs with ``settings``: MLflow's, or one that only shows progress."""
    return MLflowTracker(stage, settings) if enabled() else Tracker(stage)


def enabled() -> bool:
    """Whether runs are recorded: MLflow is there and ``FEDLOOM_TRACKING`` is not ``off``."""
    from importlib.util import find_spec

    return os.environ.get("FEDLOOM_TRACKING", "on").lower() != "off" and find_spec("mlflow") is not None


def store() -> str:
    """The URI of the database or of the MLflow server: the one that is configured, or the database of the checkout."""
    configured = os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_BACKEND_STORE_URI")
    return configured or f"sqlite:///{main_checkout() / 'mlflow.db'}"


def remote() -> bool:
    """Whether runs are sent to an MLflow server, which knows the database and the place of the files."""
    return store().startswith(("http://", "https://"))


def artifact_root() -> str | None:
    """Where a new experiment keeps its files: as configured, or in the checkout; None where an MLflow server says."""
    if remote():
        return None
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (main_checkout() / "mlartifacts").as_uri()


def shown(uri: str) -> str:
    """``uri`` without the password that may be in it."""
    return re.sub(r"(?<=//)([^:/@]*):[^/]*@", r"\1:***@", uri)


def ui() -> str:
    """Where a browser finds MLflow's UI: as configured, or where `fedloom up` starts it by default."""
    return (os.environ.get(UI) or (store() if remote() else "http://127.0.0.1:5000")).rstrip("/")


def client() -> Any:
    """MLflow's client for the store."""
    return _mlflow().MlflowClient()


def run_url(run_id: str) -> str:
    """Where the UI shows a run."""
    return f"{ui()}/#/experiments/{_experiment()}/runs/{run_id}"


def tagged(name: str, tags: Mapping[str, str]) -> str | None:
    """Puts ``tags`` on the newest pipeline run called ``name``, and returns its id; None where it is not recorded."""
    if not enabled():
        return None
    try:
        client = _mlflow().MlflowClient()
        found = client.search_runs([_experiment()], f"tags.`fedloom.run` = '{name}'", max_results=1)
        for tag, value in tags.items() if found else ():
            client.set_tag(found[0].info.run_id, tag, value)
    except Exception as error:
        _complain(error)
        return None
    return found[0].info.run_id if found else None


@contextlib.contextmanager
def pipeline_run(name: str, settings: BaseModel, tags: Mapping[str, str]) -> Iterator[str | None]:
    """The parent run of one pipeline run, for the environment variable :data:`PARENT`; None when tracking is off."""
    run_id = None
    if enabled():
        try:
            run_id = _open_parent(name, settings, {**_revision(), **tags})
        except Exception as error:
            _complain(error)
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except Exception:
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        if run_id:
            with contextlib.suppress(Exception):
                _mlflow().MlflowClient().set_terminated(run_id, status)


def conclude(run_id: str, numbers: Mapping[str, Any], report: Path | None) -> None:
    """Puts what came of a pipeline on its parent run: the numbers of all stages, restored ones too, and the report."""
    try:
        _log_metrics(run_id, _points(numbers, None))
        if report:
            _mlflow().MlflowClient().log_artifact(run_id, str(report))
    except Exception as error:
        _complain(error)


def record(
    experiment: str, name: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tags: Mapping[str, str]
) -> str | None:
    """A finished run as a whole, in an experiment of its own; None when tracking is off or fails.

    Each of ``rows`` has the metrics of one ``round``; what is no number is left out.
    """
    if not enabled():
        return None
    try:
        client = _mlflow().MlflowClient()
        run_id = client.create_run(_experiment(experiment), run_name=name, tags={**_revision(), **tags}).info.run_id
        _log_params(run_id, settings)
        _log_metrics(run_id, [point for row in rows for point in _points(row, row.get("round"))])
        client.set_terminated(run_id)
    except Exception as error:
        _complain(error)
        return None
    return run_id


def stage_key(stage: str, settings: BaseModel, artifacts: Path) -> str:
    """What names the outputs of a stage before they exist: equal keys mean equal outputs.

    Under DVC it is DVC's own key, which is also the tag ``dvc.key``; otherwise a hash of the settings, of the code and
    of what the stage reads, as `dvc.yaml` lists them.
    """
    if "DVC_STAGE" in os.environ:
        return dvc_key(os.environ["DVC_STAGE"])
    from ruamel.yaml import YAML

    entry = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"][stage] if Path("dvc.yaml").exists() else {}
    flat = flatten(settings)
    wanted = tuple(entry.get("params", flat))
    used = {name: value for name, value in flat.items() if any(f"{name}.".startswith(f"{w}.") for w in wanted)}
    digest = hashlib.sha256(json.dumps([stage, used], sort_keys=True, default=str).encode())
    for dependency in entry.get("deps", [artifacts]):
        path = Path(dependency)
        if path.parts[:1] == ("artifacts",):
            path = artifacts.joinpath(*path.parts[1:])
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(path)).encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def checkpoints_folder(stage: str, settings: BaseModel, artifacts: Path) -> Path:
    """Where a stage keeps what it needs to go on after it was killed.

    Not an output: DVC deletes those before a stage runs. In the main checkout, so that it outlives a worktree, and
    named by :func:`stage_key`, so that a changed parameter starts afresh.
    """
    return main_checkout() / ".fedloom" / "checkpoints" / stage_key(stage, settings, artifacts)


@functools.cache
def dvc_key(name: str) -> str:
    """The key under which DVC files the run of stage ``name``: the folder's name in ``.dvc/cache/runs``.

    Computed inside the running stage, as DVC will when the stage has ended. These are internals of DVC, so a test
    compares.
    """
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc.utils import dict_sha256

    with Repo() as repo:
        stage = repo.stage.load_one(name=name)
        stage.save_deps()
        entry = json.loads(json.dumps(to_single_stage_lockfile(stage)))
    entry["outs"] = [out["path"] for out in entry.get("outs", [])]
    return dict_sha256(entry, exclude=["size", "nfiles"])


def _complain(error: Exception) -> None:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    print(f"warning: not recorded in MLflow ({shown(store())}): {reason}. The run goes on without it.", file=sys.stderr)


@functools.cache
def _mlflow() -> Any:
    """MLflow, pointed at the store. The first use of a new database creates it, one process at a time."""
    quiet()
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    configured, uri = os.environ.get("MLFLOW_TRACKING_URI"), store()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if configured is None:
        # MLflow has put it there, where it would pass for the word of the user.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return mlflow


@functools.cache
def _experiment(name: str = EXPERIMENT) -> str:
    """The id of an experiment, created on first use."""
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    folder = main_checkout()
    (folder / ".fedloom").mkdir(exist_ok=True)
    with FileLock(folder / ".fedloom" / "mlflow.lock", timeout=120):
        client = _mlflow().MlflowClient()
        found = client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        try:
            return client.create_experiment(name, artifact_location=artifact_root())
        except MlflowException:
            # Another machine was faster, which the lock does not know of.
            if found := client.get_experiment_by_name(name):
                return found.experiment_id
            raise


def _open_parent(name: str, settings: BaseModel, tags: Mapping[str, str]) -> str:
    experiment = _experiment()
    run_id = _mlflow().MlflowClient().create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
    _log_params(run_id, settings.model_dump(mode="json"))
    return run_id


def _group(settings: BaseModel) -> str:
    """The parent of the stages of one plain `dvc repro`: those of one revision and one set of parameters."""
    revision = _revision()
    group = hashlib.sha256((revision.get("git.commit", "") + settings.model_dump_json()).encode()).hexdigest()[:16]
    client = _mlflow().MlflowClient()
    found = client.search_runs([_experiment()], f"tags.`fedloom.group` = '{group}'", max_results=1)
    if not found:
        return _open_parent(f"repro-{group[:6]}", settings, {**revision, "fedloom.group": group})
    client.update_run(found[0].info.run_id, status="RUNNING")
    return found[0].info.run_id


def _log_params(run_id: str | None, values: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, str(value)[:6000]) for name, value in flatten(values).items()]
    for start in range(0, len(flat), 100):
        _mlflow().MlflowClient().log_batch(run_id, params=flat[start : start + 100])


def _points(values: Mapping[str, Any], step: int | None) -> list[Point]:
    """The numbers among ``values`` as points of MLflow's series, now."""
    now = int(time.time() * 1000)
    numbers = ((name, value) for name, value in values.items() if isinstance(value, int | float))
    return [(name, float(value), now, step or 0) for name, value in numbers]


def _log_metrics(run_id: str | None, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(points), FLUSH_POINTS):
        batch = [Metric(*point) for point in points[start : start + FLUSH_POINTS]]
        _mlflow().MlflowClient().log_batch(run_id, metrics=batch)


def _revision() -> dict[str, str]:
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    # What a repro itself writes does not make the code that ran another one.
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock", ":(exclude,top)metrics"
    )
    return {"git.commit": commit, "git.dirty": str(bool(changed)).lower()}


def _flow() -> dict[str, str]:
    named = {"prefect.flow_run_id": FLOW_RUN, "prefect.task_run_id": TASK_RUN}
    return {tag: os.environ[variable] for tag, variable in named.items() if variable in os.environ}
