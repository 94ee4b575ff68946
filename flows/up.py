"""`fedloom up`: the Prefect server, the MLflow server and the pipelines, started, watched and stopped as one.

Everything that a service starts carries the service's name and checkout in its environment (:data:`MARK`). So nothing
is lost from sight, be it in a process group of its own or orphaned by a parent that was killed: at the end all of it
goes, and what an `up` that was itself killed has left goes when the next one starts.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import psutil

from flows import server
from flows.server import HOST, Service
from tasks import tracking

MARK = "FEDLOOM_UP"
"""Environment variable of all that a service has started: the service's name and checkout."""

ENVIRONMENT = ".fedloom/team.env"
"""File with the variables of a team's set-up. It holds passwords, so it is where neither git nor Ray takes it along."""

TICK = 0.2
LATEST = 60.0
"""Seconds between two tries to start what does not come up, at most."""

PATIENCE = {signal.SIGINT: 40.0, signal.SIGTERM: 10.0, signal.SIGKILL: 5.0}
"""How a service is ended, and how long each way may take: a flow run first ends the stage that it has started."""

TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends `fedloom up`: Ctrl-C, a supervisor, the terminal that was closed."""

Say = Callable[[str, str], None]
"""Shows who says what."""


class Ports(NamedTuple):
    """Where the servers listen."""

    prefect: int = server.PORT
    mlflow: int = server.MLFLOW_PORT

    @classmethod
    def free(cls, prefect: int | None, mlflow: int | None) -> "Ports":
        """The given ports, refused where they are taken; for the others the usual ones or the next that are free."""
        for port, option in ((prefect, "--port"), (mlflow, "--mlflow-port")):
            if port is not None:
                server.refuse_taken(port, option)
        usual = cls()
        return cls(prefect or server.next_free(usual.prefect), mlflow or server.next_free(usual.mlflow))


class Plan(NamedTuple):
    """What is to run, and where it is found. A server that runs elsewhere has an address, but is no service here."""

    prefect: str
    mlflow: str
    servers: list[Service]
    runner: Service

    @property
    def services(self) -> list[Service]:
        return [*self.servers, self.runner]


def plan(main: Path, names: Collection[str], ports: Ports) -> Plan:
    """The services of the checkout: those of the servers that the environment does not name, and the pipelines."""
    servers = []
    api = os.environ.get("PREFECT_API_URL")
    if api is None:
        api = f"http://{HOST}:{ports.prefect}/api"
        servers.append(server.prefect(main, ports.prefect))
    ui = tracking.ui()
    if not tracking.remote():
        ui = os.environ.get(tracking.UI) or f"http://{HOST}:{ports.mlflow}"
        servers.append(server.mlflow(main, ports.mlflow))
    runner = Service(
        "pipelines",
        (sys.executable, "-m", "flows.cli", "serve"),
        main,
        # The one says that this process has come so far, the other that the server knows what it serves.
        lambda: bool(server.fetched(server.note(main, "reports"))) and _deployed(api, names),
        {"PREFECT_API_URL": api, tracking.UI: ui, "PYTHONUNBUFFERED": "1"},
        spares=True,
    )
    return Plan(api.removesuffix("/api"), ui, servers, runner)


def clear(main: Path, say: Say) -> None:
    """Ends what an `up` that was killed has left, before ports are chosen: it has the usual ones."""
    if left := family(main):
        say("up", f"ending {len(left)} processes that an `up` which was killed has left")
        end(main)


def run(main: Path, chosen: Plan, say: Say, ready: Callable[[], None]) -> None:
    """Starts the services, calls ``ready``, and keeps them running and shows what the runs say until it is told to end.

    Raises
    ------
    Refused
        Where a service does not come up the first time. Later it is tried again and again.
    """
    before = {number: signal.signal(number, _told) for number in TOLD}
    kept = {service.name: Kept(service, say) for service in chosen.services}
    try:
        with server.noted(main, f"{chosen.prefect}/api"), server.noted(main, chosen.mlflow, "mlflow"):
            for together in (chosen.servers, [chosen.runner]):
                for service in together:
                    kept[service.name].start()
                for service in together:
                    service.wait(kept[service.name].process)
            # How it started is in its log.
            kept[chosen.runner.name].news()
            ready()
            while True:
                for one in kept.values():
                    one.mind()
                for line in kept[chosen.runner.name].news():
                    say(chosen.runner.name, line)
                time.sleep(TICK)
    except KeyboardInterrupt:
        say("up", "stopping")
    finally:
        # Impatience must not leave half of it behind.
        for number in TOLD:
            signal.signal(number, signal.SIG_IGN)
        for service in reversed(chosen.services):
            end(main, service.name)
        for number, handler in before.items():
            signal.signal(number, handler)


class Kept:
    """A service that is started again when it has died."""

    def __init__(self, service: Service, say: Say):
        self.service, self.say = service, say
        self.serves = True
        self.failures = 0
        self.due: float | None = None
        self.read = service.log.stat().st_size if service.log.exists() else 0

    def start(self) -> None:
        self.process = self.service.start(**{MARK: _mark(self.service.folder, self.service.name)})

    def mind(self) -> None:
        """Looks after it once: at once where it has died, a bit later each time that it did not come up."""
        name, code = self.service.name, self.process.poll()
        if code is None:
            if not self.serves and self.service.healthy():
                self.serves, self.failures = True, 0
                self.say(name, "is back")
        elif self.due is None:
            pause = min(2.0**self.failures - 1, LATEST)
            self.serves, self.failures, self.due = False, self.failures + 1, time.monotonic() + pause
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            log = self.service.log.relative_to(self.service.folder)
            self.say(name, f"{how}; starting it again{f' in {pause:.0f} s' if pause else ''} · log: {log}")
        elif time.monotonic() >= self.due:
            self.due = None
            if not self.service.spares:
                # A worker that still has the port.
                end(self.service.folder, name)
            self.start()

    def news(self) -> list[str]:
        """The lines that its log has got since last asked."""
        # A log that is shorter than it was is a new one.
        start = self.read if self.read <= self.service.log.stat().st_size else 0
        with self.service.log.open("rb") as log:
            log.seek(start)
            whole, newline, _ = log.read().rpartition(b"\n")
        self.read = start + len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


def family(main: Path, name: str | None = None) -> list[psutil.Process]:
    """The processes that descend from a service of the checkout, or from any."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get(MARK, "")
            if mark == _mark(main, name) if name else mark.endswith(_mark(main, "")):
                found.append(process)
    return found


def end(main: Path, name: str | None = None) -> None:
    """Ends a service, or all, with everything that descends from it: asked as by Ctrl-C, then told, then killed."""
    for number, seconds in PATIENCE.items():
        left = family(main, name)
        pids = {process.pid for process in left}
        for process in left:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if number != signal.SIGINT:
                    process.send_signal(number)
                elif process.ppid() not in pids:
                    # Its group alone: what it has put into others it ends itself, in good order.
                    os.killpg(os.getpgid(process.pid), number)
        deadline = time.monotonic() + seconds
        while family(main, name) and time.monotonic() < deadline:
            time.sleep(TICK)


def by_hand(main: Path, chosen: Plan) -> str:
    """The services as shell commands, a terminal each."""
    common = "\n".join(f"export {_shell(pair)}" for pair in server.settings(main).items())
    parts = [f"# In every terminal:\ncd {shlex.quote(str(main))}\n{common}"]
    for service in chosen.services:
        told = [_shell(pair) for pair in _open(service.environment).items()]
        command = " \\\n    ".join([*told, shlex.join(service.command)])
        parts.append(f"# {service.name}\n{command}")
    return "\n\n".join(parts)


def units(main: Path, chosen: Plan) -> dict[str, str]:
    """The services as systemd's units of a user, by file name."""
    made = {}
    names = [_unit(service) for service in chosen.servers]
    for service in chosen.services:
        told = _open({**server.settings(main), **service.environment})
        order = [f"After={' '.join(names)}", f"Wants={' '.join(names)}"] if service is chosen.runner and names else []
        made[_unit(service)] = "\n".join(
            [
                "[Unit]",
                f"Description=Fedloom: {service.name}",
                *order,
                "",
                "[Service]",
                f"WorkingDirectory={str(main).replace('%', '%%')}",
                *(f"Environment={_systemd(f'{name}={value}')}" for name, value in told.items()),
                f"EnvironmentFile=-{str(main / ENVIRONMENT).replace('%', '%%')}",
                f"ExecStart={' '.join(_systemd(part).replace('$', '$$') for part in service.command)}",
                "KillSignal=SIGINT",
                "TimeoutStopSec=60",
                "Restart=always",
                "RestartSec=5",
                "",
                "[Install]",
                "WantedBy=default.target",
                "",
            ]
        )
    return made


def script(main: Path, chosen: Plan) -> str:
    """What `fedloom up --print` shows: both ways, to be pasted into a shell."""
    folder = "~/.config/systemd/user"
    files = [f"cat > {folder}/{name} <<'UNIT'\n{text}UNIT" for name, text in units(main, chosen).items()]
    start = f"systemctl --user daemon-reload\nsystemctl --user enable --now {' '.join(units(main, chosen))}"
    return "\n\n".join(
        [
            "# By hand.",
            by_hand(main, chosen),
            "# Or under systemd, as units of this user. For what is not shown here, addresses with passwords and\n"
            f"# keys, they read {ENVIRONMENT} if there is one.",
            f"mkdir -p {folder}",
            *files,
            start,
            "# So that they go on when you log out:\nloginctl enable-linger",
        ]
    )


def _told(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _mark(main: Path, name: str | None) -> str:
    return f"{name or ''}@{main}"


def _deployed(api: str, names: Collection[str]) -> bool:
    """Whether the server knows a deployment for each pipeline."""
    body = json.dumps({"deployments": {"name": {"any_": list(names)}}}).encode()
    request = urllib.request.Request(f"{api}/deployments/filter", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return {entry["name"] for entry in json.load(reply)} == set(names)
    except (OSError, ValueError):
        return False


def _open(environment: Mapping[str, str]) -> dict[str, str]:
    """What of it can be shown. An address with a password is left to the environment that it came from."""
    return {name: value for name, value in environment.items() if tracking.shown(value) == value}


def _shell(pair: tuple[str, str]) -> str:
    name, value = pair
    return f"{name}={shlex.quote(value)}"


def _unit(service: Service) -> str:
    return f"fedloom-{service.name}.service"


def _systemd(text: str) -> str:
    """``text`` as one word of a unit."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if re.fullmatch(r"[\w@%+=:,./~-]+", escaped) else f'"{escaped}"'
