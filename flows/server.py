"""The servers of a checkout, Prefect's and MLflow's: how each is started, found, and known to answer.

They listen on the loopback interface and never call home. Prefect keeps its database in `.fedloom/prefect` of the
checkout, so that nothing else on the machine is touched, unless its own variables name another one. MLflow shows what
`tasks.tracking` writes.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from flows.process import LOG, stop
from tasks import tracking
from tasks.artifacts import write_text
from tasks.config import Refused

HOST, PORT, MLFLOW_PORT, REPORTS_PORT = "127.0.0.1", 4200, 5000, 4300
REPORTS = "FEDLOOM_REPORTS_URL"
"""Environment variable: where the folder of reports is shown while pipelines are served."""

PATIENCE = 180.0
"""Seconds that a server may take to come up on a busy machine."""

LOG_BYTES = 10 * 2**20
"""A log that has grown beyond this makes room at the next start: one older file is kept."""


@dataclass(frozen=True)
class Service:
    """A program that runs until it is stopped."""

    name: str
    command: tuple[str, ...]
    folder: Path
    """The checkout that it works for, and in."""
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it is told besides :func:`settings` and the environment of whoever starts it."""
    spares: bool = False
    """Whether what it has started may go on without it, as runs do that their runner has left behind."""

    @property
    def log(self) -> Path:
        return self.folder / ".fedloom" / "logs" / f"{self.name}.log"

    def start(self, **environment: str) -> subprocess.Popen:
        """Starts it in a process group of its own. What it says is added to its log, and it is told where that is."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("a") as output:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **self.environment, **environment, LOG: str(self.log)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, process: subprocess.Popen) -> None:
        """Returns once it answers.

        Raises
        ------
        Refused
            Where it ends before that or takes too long, with what it said last.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise Refused(
                    self.name, None, f"did not start:\n{last}\n", f"The whole log is {self.log}; try `fedloom doctor`"
                )
            time.sleep(0.2)


def settings(main: Path) -> dict[str, str]:
    """What Prefect and the others are told by the environment, where that does not say otherwise."""
    defaults = {
        "PREFECT_HOME": str(main / ".fedloom" / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(PATIENCE)),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    return tracking.QUIET | {name: os.environ.get(name, value) for name, value in defaults.items()}


def prepare(main: Path) -> None:
    """Sets what Prefect reads when it is imported: call it first."""
    os.environ.update(settings(main))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    if (url := note(main, "mlflow")) and mlflow_answers(url):
        os.environ.setdefault(tracking.UI, url)


def prefect(main: Path, port: int, services: bool = True) -> Service:
    """Prefect's server with its UI, as `prefect server start --background` starts it, with one header more: the pages
    ask nobody but their own server. Whatever its settings are, the UI asks a service of analytics for its
    configuration. ``services`` are what schedules need."""
    url = f"http://{HOST}:{port}/api"
    # Without its own address the UI looks for the API on the default port, and notifications have no link.
    seen = os.environ.get("PREFECT_SERVER_UI_API_URL", url)
    told = {
        "PREFECT_SERVER_UI_API_URL": seen,
        "PREFECT_UI_URL": seen.removesuffix("/api"),
        "PREFECT__SERVER_FINAL": "1",
    }
    if not services:
        told["PREFECT__SERVER_WEBSERVER_ONLY"] = "1"
    origin = urllib.parse.urlsplit(seen)._replace(path="", query="").geturl()
    policy = f"connect-src 'self' {origin} {origin.replace('http', 'ws', 1)}"
    command = (sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app")
    options = ("--host", HOST, "--port", str(port), "--header", f"Content-Security-Policy:{policy}")
    return Service("prefect", (*command, *options), main, partial(answers, url), told)


def mlflow(main: Path, port: int) -> Service:
    """MLflow's server with its UI. What may hold a password is not on the command line, which every user can list."""
    command = (sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1")
    told = {
        "MLFLOW_BACKEND_STORE_URI": tracking.store(),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": tracking.artifact_root() or "",
        # Without job execution the server is 2 processes and 0.4 GB, with it 10 and 1.8 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    url = f"http://{HOST}:{port}"
    quiet = ("--uvicorn-opts", "--no-access-log")
    return Service("mlflow", (*command, *quiet), main, lambda: mlflow_answers(url), told)


def answers(url: str) -> bool:
    """Whether a Prefect server answers at the API's ``url``."""
    return fetched(f"{url}/health").strip() == b"true"


def mlflow_answers(url: str) -> bool:
    return fetched(f"{url.rstrip('/')}/health").strip() == b"OK"


def fetched(url: str) -> bytes:
    """What a server says at ``url``; nothing where none answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.read()
    except (OSError, urllib.error.URLError, ValueError):
        return b""


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((HOST, port)) != 0


def any_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def next_free(port: int) -> int:
    """``port`` or the first one above it that is free: mostly the same one every time, so that links stay good."""
    return next(filter(free, from_on(port)), None) or any_port()


def from_on(port: int) -> range:
    """``port`` and those above it that are tried in its place."""
    return range(port, min(port + 100, 65536))


def note(main: Path, name: str) -> str:
    """The address that :func:`noted` has left, or nothing."""
    path = main / ".fedloom" / name
    return path.read_text().strip() if path.exists() else ""


def found(main: Path) -> str | None:
    """The API of a server that runs already: the one that is configured, or the one of `fedloom up` or `serve`."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    url = note(main, "server")
    return url if url and answers(url) else None


@contextlib.contextmanager
def serving(main: Path, port: int | None = None, services: bool = True) -> Iterator[str]:
    """A Prefect server for the block; yields the URL of its API, which is also in the environment then.

    An own one is started where none runs, on ``port`` or a free one, and ended afterwards. ``services`` are what
    schedules need. Its output goes to `.fedloom/logs/prefect.log`.

    Raises
    ------
    Refused
        Where the port is taken by another program, or the server does not come up.
    """
    url = found(main) if port is None else f"http://{HOST}:{port}/api"
    with contextlib.ExitStack() as stack:
        if url is None or not answers(url):
            if port is None and url is not None:
                raise Refused(
                    "PREFECT_API_URL", url, "no Prefect server answers there", "Start it, or unset the variable"
                )
            url = stack.enter_context(_started(main, port or any_port(), services))
        before = os.environ.get("PREFECT_API_URL")
        os.environ["PREFECT_API_URL"] = url
        try:
            yield url
        finally:
            os.environ.pop("PREFECT_API_URL")
            if before is not None:
                os.environ["PREFECT_API_URL"] = before


@contextlib.contextmanager
def noted(main: Path, url: str, name: str = "server") -> Iterator[None]:
    """Lets other commands find a server while the block lasts. Who finds its address noted leaves that to the other."""
    if note(main, name) == url:
        yield
        return
    path = main / ".fedloom" / name
    write_text(path, url)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(main: Path) -> Iterator[None]:
    """The right to serve the pipelines of the checkout, which one process has at a time.

    Raises
    ------
    Refused
        Where another one has it, with the address where it is found.
    """
    path = main / ".fedloom" / "locks" / "serving.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        where = note(main, "server").removesuffix("/api") or "still starting"
        found = f"is served already, by `fedloom up` or `fedloom serve` ({where})"
        raise Refused("this checkout", None, found, "Ctrl-C there ends it") from None
    try:
        _forget(main)
        yield
    finally:
        _forget(main)
        lock.release()


def _forget(main: Path) -> None:
    """Drops the notes that services have left which were killed."""
    for name in ("server", "mlflow", "reports"):
        (main / ".fedloom" / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _started(main: Path, port: int, services: bool) -> Iterator[str]:
    refuse_taken(port, "--port")
    service = prefect(main, port, services)
    process = service.start()
    try:
        service.wait(process)
        yield f"http://{HOST}:{port}/api"
    finally:
        stop(process)


def refuse_taken(port: int, option: str) -> None:
    """Refuses a port that another program has."""
    if not free(port):
        raise Refused(option.strip("-"), port, "is used by another program", f"Name another one with {option}")
