"""Served pipelines: schedules fire, the API refuses mistakes, and what is triggered really runs."""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import pipelines, server
from flows.deploy import _reports, deployment, schedule
from flows.server import REPORTS
from tasks import params
from tests.flows.conftest import Checkout, until

OFTEN = """
pipelines:
  default: {description: as it stands}
  often: {schedule: {interval: 15}, stages: [partition], tags: [test]}
"""


def call(url: str, path: str, body: dict | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data, {"Content-Type": "application/json"})
    for patience in (1, 2, 4, 8, 0):
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            # A busy server asks to be asked again, as Prefect's own client does.
            if error.code != 503 or not patience:
                raise
            time.sleep(patience)
    raise AssertionError


def pause(url: str, deployments: Iterable[str]) -> None:
    """Ends the schedules, which outlive who serves them: the server would plan run after run for the other tests."""
    for identity in deployments:
        call(url, f"deployments/{identity}/pause_deployment", {})


def runs(url: str, deployment_id: str, *states: str) -> list[dict]:
    wanted = {
        "deployments": {"id": {"any_": [deployment_id]}},
        "flow_runs": {"state": {"type": {"any_": list(states)}}},
    }
    return call(url, "flow_runs/filter", wanted)


def test_a_schedule_fires_and_a_run_can_be_triggered_with_overrides(checkout: Checkout, prefect_server: str):
    """Prefect 3.8 on SQLAlchemy 2.1 serves, shows and runs all this, but never fires a schedule: hence the pin."""
    (checkout.folder / "pipelines.yaml").write_text(OFTEN)
    process = checkout.start(sys.executable, "-m", "flows.cli", "serve", PREFECT_API_URL=prefect_server)
    try:
        # The server is that of all tests: it may know others.
        wanted = {"deployments": {"name": {"any_": ["default", "often"]}}}
        served = until(lambda: len(each := call(prefect_server, "deployments/filter", wanted)) == 2 and each)
        found = {entry["name"]: entry["id"] for entry in served}
        assert set(found) == {"default", "often"}

        with pytest.raises(urllib.error.HTTPError) as refused:
            mistyped = {"parameters": {"overrides": {"train": {"ruonds": 3}}}}
            call(prefect_server, f"deployments/{found['default']}/create_flow_run", mistyped)
        assert refused.value.code == 409
        assert "ruonds" in refused.value.read().decode()

        wanted = {"name": "By Hand", "parameters": {"overrides": {"attack": {"messages": 1}}}}
        call(prefect_server, f"deployments/{found['default']}/create_flow_run", wanted)
        deadline = time.monotonic() + 240
        finished: dict[str, list[dict]] = {"default": [], "often": []}
        while not all(finished.values()) and time.monotonic() < deadline:
            time.sleep(0.5)
            finished = {name: runs(prefect_server, found[name], "COMPLETED") for name in finished}
            failed = [run for name in found for run in runs(prefect_server, found[name], "FAILED", "CRASHED")]
            assert not failed, failed[0]["state"]["message"]
        assert finished["often"] and finished["often"][0]["auto_scheduled"]
        assert finished["default"]
        pause(prefect_server, found.values())
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.communicate(timeout=60)[0])
    assert "by-hand" in checkout.dvc("exp", "list", "--name-only")
    assert (checkout.folder / "reports" / "by-hand.html").exists()
    tasks = call(prefect_server, "task_runs/filter", {"flow_runs": {"name": {"any_": ["By Hand"]}}})
    assert {task["name"]: task["state"]["name"] for task in tasks} == {
        "partition": "Restored",
        "train": "Restored",
        "aggregate": "Restored",
        "attack": "Ran",
        "report": "Ran",
    }
    artifacts = call(prefect_server, "artifacts/latest/filter", {})
    assert {"stages", "summary", "report"} <= {artifact["key"] for artifact in artifacts}


def test_a_schedule_says_the_same_to_prefect():
    nightly = schedule(pipelines.Schedule(cron="0 3 * * *", timezone="Europe/Berlin", active=False))
    assert (nightly.cron, nightly.timezone, nightly.active) == ("0 3 * * *", "Europe/Berlin", False)
    assert schedule(pipelines.Schedule(interval=90)).interval.total_seconds() == 90


def test_a_deployment_says_what_it_is_and_what_it_changes():
    entry = pipelines.Pipeline(overrides={"train": {"cohort": 3}}, description="Noise.")
    settings = params.build({"train": {"cohort": 3}})
    served = deployment("dp", entry, settings)
    shown = served._parameter_openapi_schema.properties["overrides"]["properties"]["train"]["properties"]
    assert shown["cohort"]["default"] == 3
    # The form is for a person: what a schedule starts takes its parameters from the files.
    assert served.parameters == {"pipeline": "dp"}
    assert served.description.startswith("Noise.")
    assert YAML(typ="safe").load(served.description.split("```yaml")[1].strip("`")) == {"train": {"cohort": 3}}


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (None, "when you start it"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Berlin", "active": False}, "`0 3 * * *` (Europe/Berlin)"),
        ({"interval": 90}, "every 90 seconds"),
    ],
)
def test_a_deployment_says_when_it_starts(when, said):
    entry = pipelines.Pipeline(schedule=when)
    text = deployment("some", entry, params.Params()).description
    assert said in text
    assert ("paused" in text) == bool(when and not when.get("active", True))


def test_reports_are_shown_on_the_next_port_where_theirs_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv(REPORTS, raising=False)
    with _reports(tmp_path) as first:
        monkeypatch.delenv(REPORTS)
        with _reports(tmp_path) as second:
            assert first != second and server.fetched(first) and server.fetched(second)
    assert not server.fetched(first)
