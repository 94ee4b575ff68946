"""Every pipeline as a deployment: started from the Prefect UI, by its schedule or over the API, while `serve` runs."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from prefect import serve
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from ruamel.yaml import YAML

from flows import checkout, pipelines
from flows.pipeline import pipeline
from flows.pipelines import Pipeline
from flows.server import HOST, REPORTS, REPORTS_PORT, next_free

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


def serve_all(main: Path, chosen: dict[str, Pipeline]) -> None:
    """Deploys the pipelines and runs what is triggered until it is stopped. A refused parameter stops it at once."""
    for name, entry in chosen.items():
        checkout.resolve(main, entry.changes, f"pipelines.yaml: pipelines.{name}")
    with _reports(main / "reports"):
        # The schedules belong to the deployments, which another process may serve too.
        served = (deployment(*item) for item in chosen.items())
        serve(*served, limit=RUNS, pause_on_shutdown=False, print_starting_message=False)


def _describe(entry: Pipeline) -> str:
    if not entry.changes:
        return entry.description
    from io import StringIO

    text = StringIO()
    YAML().dump(entry.changes, text)
    return f"{entry.description}\n\n```yaml\n{text.getvalue()}```"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the log is for the flows."""


@contextlib.contextmanager
def _reports(folder: Path) -> Iterator[None]:
    """Shows the folder of reports, for a browser opens no local file from a link in the Prefect UI.

    On the port that the environment names or on :data:`REPORTS_PORT` or one above it: links in old runs should last.
    """
    folder.mkdir(exist_ok=True)
    url = os.environ.setdefault(REPORTS, f"http://{HOST}:{next_free(REPORTS_PORT)}")
    address = HOST, urlsplit(url).port or REPORTS_PORT
    server = ThreadingHTTPServer(address, functools.partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
