"""Pipelines and sweeps as deployments: started from the Prefect UI, by schedule or over the API, while `serve` runs."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import serve
from prefect.client.orchestration import get_client
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Crashed
from prefect.utilities.callables import ParameterSchema
from ruamel.yaml import YAML

from flows import checkout, form, grid, pipelines
from flows.pipeline import RUNNING, pipeline
from flows.pipelines import Pipeline, Sweep
from flows.server import HOST, REPORTS, REPORTS_PORT, from_on, noted
from flows.sweep import sweep
from tasks.params import Params

RUNS = 2
"""Runs at a time over all pipelines."""


def schedule(entry: pipelines.Schedule) -> Schedule:
    """The schedule as Prefect takes it."""
    if entry.cron is not None:
        return Cron(entry.cron, timezone=entry.timezone, active=entry.active)
    return Interval(entry.interval or 0.0, active=entry.active)


def deployment(name: str, entry: Pipeline, settings: Params) -> RunnerDeployment:
    """A pipeline that can be triggered, with ``settings`` in its form.

    What a schedule or a click on "Quick run" starts reads the files when it runs, so an edit counts at once.
    """
    made = pipeline.to_deployment(
        name=name,
        description=_describe(entry),
        parameters={"pipeline": name},
        tags=list(entry.tags),
        schedule=schedule(entry.schedule) if entry.schedule else None,
        concurrency_limit=entry.resources.concurrency,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # Prefect makes a form of the flow's signature, which is the same for every pipeline.
    made._parameter_openapi_schema = ParameterSchema(properties=form.properties(name, settings))
    return made


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
    deployments = [
        deployment(name, entry, checkout.resolve(main, entry.changes, f"pipelines.yaml: pipelines.{name}"))
        for name, entry in chosen.items()
    ]
    for name, entry in sweeps.items():
        grid.cells(main, name, pipelines.read(main))
        deployments.append(sweep_deployment(name, entry))
    bury(main)
    with _reports(main / "reports") as url, noted(main, url, "reports"):
        print(f"reports: {url}", flush=True)
        # The schedules belong to the deployments, which another process may serve too.
        serve(*deployments, limit=RUNS, pause_on_shutdown=False, print_starting_message=False)


def bury(main: Path) -> None:
    """Marks runs as crashed whose process ended with the one that served them, so that they can be retried.

    Only who serves a run notices that its process was killed; when both are, it stays `Running` for ever.
    """
    with get_client(sync_client=True) as client:
        for path in (main / ".fedloom" / "locks").glob(f"{RUNNING}*.lock"):
            with contextlib.suppress(Timeout, ObjectNotFound), FileLock(path, timeout=0):
                run = client.read_flow_run(UUID(path.stem.removeprefix(RUNNING)))
                if run.state and run.state.is_running():
                    client.set_flow_run_state(run.id, Crashed(message="Its process was gone; it can be retried."), True)
                path.unlink()


def _describe(entry: Pipeline) -> str:
    """What the pipeline is for, what it changes, where it runs and when, in Markdown."""
    where = "Runs in this checkout." if not entry.changes else "Runs in a copy; kept as a DVC experiment."
    stages = ", ".join(entry.stages) or "all five"
    parts = [entry.description, f"**Stages:** {stages}. {where}", f"**Starts:** {_when(entry.schedule)}"]
    if entry.changes:
        parts += ["**Differs from `params.yaml` in:**", _yaml(entry.changes)]
    return "\n\n".join(part for part in parts if part)


def _yaml(values: dict[str, Any]) -> str:
    text = StringIO()
    YAML().dump(values, text)
    return f"```yaml\n{text.getvalue()}```"


def _when(entry: pipelines.Schedule | None) -> str:
    if entry is None:
        return "when you start it: *Quick run* as it stands, *Custom run* with parameters changed in a form."
    every = f"`{entry.cron}` ({entry.timezone})" if entry.cron else f"every {entry.interval:g} seconds"
    paused = "" if entry.active else " The schedule is paused: switch it on here."
    return f"{every}, and when you start it.{paused}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the log is for the flows."""


@contextlib.contextmanager
def _reports(folder: Path) -> Iterator[str]:
    """Shows the folder of reports, for a browser opens no local file from a link in the Prefect UI; yields where.

    On the port that the environment names or on :data:`REPORTS_PORT` or one above it: links in old runs should last.
    """
    folder.mkdir(exist_ok=True)
    server = _listening(functools.partial(_Quiet, directory=folder))
    url = os.environ.setdefault(REPORTS, f"http://{HOST}:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


def _listening(handler: Callable[..., SimpleHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server that has its port already: one that was found free may be another program's by the time it is used."""
    if named := urlsplit(os.environ.get(REPORTS, "")).port:
        return ThreadingHTTPServer((HOST, named), handler)
    for port in from_on(REPORTS_PORT):
        with contextlib.suppress(OSError):
            return ThreadingHTTPServer((HOST, port), handler)
    return ThreadingHTTPServer((HOST, 0), handler)
