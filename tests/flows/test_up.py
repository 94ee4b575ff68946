"""`fedloom up`: everything answers, what dies comes back with nothing lost, and nothing is left when it ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows import server, up
from tests.flows.conftest import Checkout, until
from tests.flows.test_serve import call, runs

PIPELINES = """
pipelines:
  default: {description: as it stands}
  often: {description: again and again, schedule: {interval: 3600}}
"""


class Up:
    """A `fedloom up` on ports of its own."""

    def __init__(self, checkout: Checkout, ports: tuple[int, int] | None = None, **environment: str):
        self.main, self.output = checkout.folder, checkout.folder.parent / "up.txt"
        self.ports = self.port, self.mlflow_port = ports or (server.any_port(), server.any_port())
        self.prefect, self.mlflow = (f"http://{server.HOST}:{port}" for port in (self.port, self.mlflow_port))
        self.api = f"{self.prefect}/api"
        options = ("--port", str(self.port), "--mlflow-port", str(self.mlflow_port))
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "up", *options],
                cwd=self.main,
                env=checkout.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self.says("│ ready"))

    def says(self, text: str) -> bool:
        return text in self.output.read_text()

    def until(self, condition: Callable[[], object]) -> None:
        until(lambda: self.process.poll() is not None or condition(), 150)
        assert self.process.poll() is None, self.output.read_text()

    def kill(self, name: str) -> None:
        """Kills the first process of a service, as a lack of memory would, and waits until it is missed."""
        (first,) = [one for one in up.family(self.main, name) if one.ppid() == self.process.pid]
        first.kill()
        self.until(lambda: self.says(f"{name:<9} │ was killed by SIGKILL; starting it again"))

    def trigger(self, name: str) -> str:
        wanted = {"name": {"any_": [name]}}
        (found,) = call(self.api, "deployments/filter", {"deployments": wanted})
        call(self.api, f"deployments/{found['id']}/create_flow_run", {"parameters": {"force": True}})
        return found["id"]

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


@pytest.mark.slow
def test_what_dies_comes_back_with_nothing_lost_and_nothing_is_left_in_the_end(checkout: Checkout):
    (checkout.folder / "pipelines.yaml").write_text(PIPELINES)
    waiting = {"FEDLOOM_TEST_WAIT": "train=6", "FEDLOOM_TRACKING": "on"}
    first = Up(checkout, **waiting)
    try:
        # Both pages, and every pipeline with its schedule.
        for shown in (first.prefect, first.mlflow):
            until(lambda shown=shown: b"<html" in server.fetched(shown))
        known = {entry["name"]: entry for entry in call(first.api, "deployments/filter", {})}
        assert set(known) == {"default", "often"}
        assert known["often"]["schedules"][0]["active"]

        # Who comes second is told where the first is.
        refused = " ".join(checkout.fedloom("up", code=2).split())
        assert f"is served already, by `fedloom up` or `fedloom serve` ({first.prefect})" in refused

        # All three are killed while a run is under way; it ends as if nothing had happened.
        deployment = first.trigger("default")
        first.until(lambda: checkout.log.exists() and "train" in checkout.log.read_text())
        (run,) = runs(first.api, deployment, "RUNNING")
        for name in ("mlflow", "prefect", "pipelines"):
            first.kill(name)
        for name in ("mlflow", "prefect", "pipelines"):
            first.until(lambda name=name: first.says(f"{name:<9} │ is back"))
        until(lambda: b"<html" in server.fetched(first.mlflow))
        first.until(lambda: call(first.api, f"flow_runs/{run['id']}")["state_type"] != "RUNNING")
        assert call(first.api, f"flow_runs/{run['id']}")["state_type"] == "COMPLETED"
        assert checkout.ran() == ["partition", "train", "aggregate", "attack", "report"]
        links = {found["key"]: found["data"] for found in call(first.api, "artifacts/latest/filter", {})}
        parent = links["mlflow"].partition(f"({first.mlflow}/#/experiments/")[2].partition("/runs/")[2].rstrip(")")
        recorded = call(f"{first.mlflow}/api/2.0/mlflow", f"runs/get?run_id={parent}")["run"]
        assert recorded["info"]["status"] == "FINISHED"

        # Killed itself, it leaves everything behind, and the next one takes that away.
        left = up.family(first.main)
        first.end(signal.SIGKILL)
        assert all(process.is_running() for process in left)
        second = Up(checkout, first.ports, **waiting)
        try:
            assert second.says("processes that an `up` which was killed has left")
            assert not any(process.is_running() for process in left)

            # Ended in the middle of a run, it leaves neither the run nor the stage of it.
            second.trigger("often")
            second.until(lambda: checkout.log.exists() and "train" in checkout.log.read_text())
            stage = psutil.Process(int(checkout.log.read_text().split()[-1]))
            assert second.end() == 0
            assert second.says("stopping")
            assert not up.family(second.main) and not stage.is_running()
            assert server.free(second.port) and server.free(second.mlflow_port)
        finally:
            second.process.kill()
            up.end(second.main)
        logs = {path.name: path.read_text() for path in (checkout.folder / ".fedloom" / "logs").iterdir()}
        assert set(logs) == {"prefect.log", "mlflow.log", "pipelines.log"} and all(logs.values())
        assert not [name for name in ("server", "mlflow", "reports") if (checkout.folder / ".fedloom" / name).exists()]
    finally:
        first.process.kill()
        up.end(first.main)
        print(first.output.read_text())


def test_what_is_printed_can_be_pasted_and_shows_no_password(checkout: Checkout, tmp_path: Path):
    database = "postgresql://fedloom:secret@db.example.org/mlflow"
    said = checkout.fedloom("up", "--print", "--port", "4444", MLFLOW_BACKEND_STORE_URI=database)
    assert "secret" not in said
    assert subprocess.run(["bash", "-n"], input=said, text=True, check=False).returncode == 0

    # By hand: each of the three is a program that takes these options.
    by_hand, _, under_systemd = said.partition("# Or under systemd")
    for command in re.findall(r"(?:\S+=.* \\\n +)*\S*python -m .*", by_hand):
        done = subprocess.run(
            f"{command} --help",
            shell=True,
            check=False,
            cwd=checkout.folder,
            env=checkout.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr
    assert "PREFECT_API_URL=http://127.0.0.1:4444/api" in by_hand

    # Pasted, the second half leaves three units and has them started.
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "loginctl"):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\necho "$0 $@" >> "$HOME/asked"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", f"# {under_systemd}"], env=home, check=True)
    files = sorted((tmp_path / ".config" / "systemd" / "user").iterdir())
    assert [file.name for file in files] == [f"fedloom-{name}.service" for name in ("mlflow", "pipelines", "prefect")]
    assert all(file.name in (tmp_path / "asked").read_text() for file in files)
    assert "MLFLOW_BACKEND_STORE_URI" not in files[0].read_text(), "it comes from the file of the team"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze, which checks units, is not installed")
    analyze = ["systemd-analyze", "verify", "--user", *files]
    done = subprocess.run(
        analyze, env=home | {"XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_word_of_a_unit_stays_one_word():
    assert up._systemd("plain-word.1") == "plain-word.1"
    assert up._systemd('100% of "a\\b"') == r'"100%% of \"a\\b\""'
