"""The Prefect server: found where one runs, started where none does; on the loopback interface, never calling home.

Prefect keeps its database in `.fedloom/prefect` of the checkout, so that nothing else on the machine is touched.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows.process import stop
from tasks.artifacts import write_text
from tasks.config import Refused
from tasks.tracking import quiet

HOST, PORT = "127.0.0.1", 4200
PATIENCE = 180.0
"""Seconds that a server may take to come up on a busy machine."""


def prepare(main: Path) -> None:
    """Sets what Prefect reads when it is imported: call it first."""
    quiet()
    home = main / ".fedloom" / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(PATIENCE)),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def answers(url: str) -> bool:
    """Whether a Prefect server answers at the API's ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return reply.read().strip() == b"true"
    except (OSError, urllib.error.URLError, ValueError):
        return False


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((HOST, port)) != 0


def any_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def found(main: Path) -> str | None:
    """The API of a server that runs already: the one that is configured, or the one that `fedloom serve` started."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    note = main / ".fedloom" / "server"
    url = note.read_text().strip() if note.exists() else ""
    return url if url and answers(url) else None


@contextlib.contextmanager
def serving(main: Path, port: int | None = None, services: bool = True) -> Iterator[str]:
    """A Prefect server for the block; yields the URL of its API, which is also in the environment then.

    An own one is started where none runs, on ``port`` or a free one, and ended afterwards. ``services`` are what
    schedules need. Its output goes to `.fedloom/prefect/server.log`.

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
def noted(main: Path, url: str) -> Iterator[None]:
    """Lets other commands find the server while the block lasts."""
    note = main / ".fedloom" / "server"
    write_text(note, url)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


@contextlib.contextmanager
def _started(main: Path, port: int, services: bool) -> Iterator[str]:
    if not free(port):
        raise Refused("port", port, "is used by another program", "Name another one with --port")
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    log = main / ".fedloom" / "prefect" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Without its own address the UI looks for the API on the default port, and notifications have no link.
    environment = {**os.environ, "PREFECT_SERVER_UI_API_URL": url, "PREFECT_UI_URL": url.removesuffix("/api")}
    environment.pop("PREFECT_API_URL", None)
    with log.open("w") as output:
        process = subprocess.Popen(
            command if services else [*command, "--no-services"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await(process, url, log)
        yield url
    finally:
        stop(process)


def _await(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise Refused(
                "Prefect server", None, f"did not start:\n{last}\n", f"The whole log is {log}; try `fedloom doctor`"
            )
        time.sleep(0.2)
