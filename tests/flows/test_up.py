"""`fedloom up`: everything answers, what dies comes back with nothing lost, and nothing is left when it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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

    def __init__(self, checkout: Checkout, **environment: str):
        self.main, self.output = checkout.folder, checkout.folder.parent / "up.txt"
        self.port, self.mlflow_port = server.any_port(), server.any_port()
        self.api, self.mlflow = f"http://{server.HOST}:{self.port}/api", f"http://{server.HOST}:{self.mlflow_port}"
        ports = ("--port", str(self.port), "--mlflow-port", str(self.mlflow_port))
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "up", *ports],
                cwd=self.main,
                env=checkout.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self.says("ready"))

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


def page(url: str) -> bytes:
    return server.fetched(url)


def test_what_dies_comes_back_with_nothing_lost_and_nothing_is_left_in_the_end(checkout: Checkout):
    (checkout.folder / "pipelines.yaml").write_text(PIPELINES)
    waiting = {"FEDLOOM_TEST_WAIT": "train=20", "FEDLOOM_TRACKING": "on"}
    first = Up(checkout, **waiting)
    try:
        # Both pages, and every pipeline with its schedule.
        assert b"<html" in page(f"http://{server.HOST}:{first.port}/") and b"<html" in page(first.mlflow)
        known = {entry["name"]: entry for entry in call(first.api, "deployments/filter", {})}
        assert set(known) == {"default", "often"}
        assert known["often"]["schedules"][0]["active"]

        # Who comes second is told where the first is.
        for command in ("up", "serve"):
            refused = " ".join(checkout.fedloom(command, code=2).split())
            assert f"is served already, by `fedloom up` or `fedloom serve` (http://{server.HOST}:{first.port})" in refused

        # All three are killed while a run is under way; it ends as if nothing had happened.
        deployment = first.trigger("default")
        first.until(lambda: checkout.log.exists() and "train" in checkout.log.read_text())
        (run,) = runs(first.api, deployment, "RUNNING")
        for name in ("mlflow", "prefect", "pipelines"):
            first.kill(name)
        for name in ("mlflow", "prefect", "pipelines"):
            first.until(lambda name=name: first.says(f"{name:<9} │ is back"))
        assert b"<html" in page(first.mlflow)
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
        second = Up(checkout, **waiting)
        try:
            assert second.says(f"ending {len(left)} processes")
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
        assert not [name for name in ("server", "mlflow") if (checkout.folder / ".fedloom" / name).exists()]
    finally:
        first.process.kill()
        up.end(first.main)
        print(first.output.read_text())
