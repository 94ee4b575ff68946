"""Pipelines and sweeps as deployments: started from the Prefect UI, by schedule or over the API, while `serve` runs."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from ruamel.yaml import YAML

from flows import checkout, grid, pipelines
from flows.pipeline import REPORTS, pipeline
from flows.pipelines import Pipeline, Sweep
from flows.server import HOST
from flows.sweep import sweep

RUNS = 2
"""Runs at a time over all pipelines."""


def schedule(entry: pipelines.Schedule) -> Schedule:
    """The schedule as Prefect takes it."""
    if entry.cron is not None:
        return Cron(entry.cron, timezone=entry.timezone, active=entry.active)
    return Interval(entry.interval or 0.0, active=entry.active)


def deployment(name: str, entry: Pipeline) -> RunnerDeployment:
    """A pipeline that can be triggered. Its overrides are read when it runs, so an edited file counts at once."""
    return pipeline.to_deployment(
        name=name,
        description=_describe(entry),
        parameters={"pipeline": name},
        tags=list(entry.tags),
        schedule=schedule(entry.schedule) if entry.schedule else None,
        concurrency_limit=entry.resources.concurrency,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def sweep_deployment(name: str, entry: Sweep) -> RunnerDeployment:
    """A sweep that can be triggered; one run of it at a time, for a second would wait for the same cells."""
    return sweep.to_deployment(
        name=name,
        description=f"{entry.description}\n\n{_yaml(entry.model_dump(mode='json', exclude_defaults=True))}",
        parameters={"name": name},
        tags=list(entry.tags),
        schedule=schedule(entry.schedule) if entry.schedule else None,
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def serve_all(main: Path, chosen: dict[str, Pipeline], sweeps: dict[str, Sweep]) -> None:
    """Deploys them and runs what is triggered until it is stopped. A refused parameter stops it at once."""
    for name, entry in chosen.items():
        checkout.resolve(main, entry.changes, f"pipelines.yaml: pipelines.{name}")
    for name in sweeps:
        grid.cells(main, name, pipelines.read(main))
    deployments = [deployment(*item) for item in chosen.items()] + [sweep_deployment(*item) for item in sweeps.items()]
    with _reports(main / "reports"):
        # The schedules belong to the deployments, which another process may serve too.
        serve(*deployments, limit=RUNS, pause_on_shutdown=False)


def _describe(entry: Pipeline) -> str:
    if not entry.changes:
        return entry.description
    return f"{entry.description}\n\n{_yaml(entry.changes)}"


def _yaml(values: dict[str, Any]) -> str:
    from io import StringIO

    text = StringIO()
    YAML().dump(values, text)
    return f"```yaml\n{text.getvalue()}```"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the log is for the flows."""


@contextlib.contextmanager
def _reports(folder: Path) -> Iterator[None]:
    """Shows the folder of reports on a free port, for a browser opens no local file from a link in the Prefect UI."""
    folder.mkdir(exist_ok=True)
    server = ThreadingHTTPServer((HOST, 0), functools.partial(_Quiet, directory=folder))
    os.environ[REPORTS] = f"http://{HOST}:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
