"""The Prefect UI as a person uses it: a real browser, a real server, real runs; and what fails while nobody looks."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.overrides import merge
from flows.server import HOST
from tests.flows.conftest import Checkout, project, until
from tests.flows.test_end_to_end import SMALL
from tests.flows.test_serve import call, pause

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
STOPPED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
LONG = {"train": {"rounds": 400, "evaluate_every": 100, "engine": {"checkpoint_every": 20}}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1300, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


@contextlib.contextmanager
def served(checkout: Checkout, url: str, pipelines: str) -> Iterator[dict[str, str]]:
    """Serves pipelines for the block; yields the ids of the deployments."""
    (checkout.folder / "pipelines.yaml").write_text(pipelines)
    checkout.environment |= {"PREFECT_API_URL": url, "OMP_NUM_THREADS": "1"}
    process = checkout.start(sys.executable, "-m", "flows.cli", "serve")
    names = {line.split(":")[0].strip() for line in pipelines.splitlines()[1:]}
    try:
        found: dict[str, str] = {}
        while not names <= set(found):
            found = until(lambda: {entry["name"]: entry["id"] for entry in call(url, "deployments/filter", {})})
            assert process.poll() is None, process.stdout and process.stdout.read()
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.communicate(timeout=60)[0])


@pytest.fixture(scope="module")
def small(
    reproduced: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server: str
) -> Iterator[tuple[Checkout, str]]:
    """A checkout with tiny stages that are up to date, and the id of its deployment."""
    folder = tmp_path_factory.mktemp("small") / "checkout"
    shutil.copytree(reproduced, folder, symlinks=True)
    checkout = Checkout(folder)
    with served(checkout, prefect_server, "pipelines:\n  small: {description: A few stages.}\n") as found:
        yield checkout, found["small"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[tuple[Checkout, str]]:
    """A checkout that really trains, and the id of its deployment."""
    checkout = project(tmp_path_factory.mktemp("real") / "checkout", merge(SMALL, LONG))
    with served(checkout, prefect_server, "pipelines:\n  training: {stages: [train]}\n") as found:
        yield checkout, found["training"]


def ui(url: str, path: str) -> str:
    return f"{url.removesuffix('/api')}/v2/{path}"


def start(url: str, deployment: str, **parameters: Any) -> str:
    return call(url, f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]


def state(url: str, run: str) -> dict:
    return call(url, f"flow_runs/{run}")["state"]


def reaches(url: str, run: str, wanted: str) -> dict:
    until(lambda: state(url, run)["type"] in STOPPED, 120)
    found = state(url, run)
    assert found["type"] == wanted, found
    return found


def submitted(page: Any) -> str:
    """Sends the form; the id of the run that it made. A busy database may answer with 503 (the UI says that there was
    an error and stays where it is): a person then clicks again."""
    for _ in range(5):
        with page.expect_response(lambda response: response.url.endswith("/create_flow_run")) as reply:
            page.get_by_role("button", name="Submit").click()
        if reply.value.status != 503:
            break
    assert reply.value.ok, reply.value.text()
    return reply.value.json()["id"]


def choose(page: Any, url: str, run: str, action: str) -> None:
    """Opens the page of a run and does what its menu offers."""
    page.goto(ui(url, f"runs/flow-run/{run}"))
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name=action).click()
    page.get_by_role("button", name=action).last.click()


def processes(checkout: Checkout) -> dict[int, str]:
    """The living processes that inherited the environment of the checkout, with their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if checkout.environment["FEDLOOM_TEST_LOG"].encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def flow_process(checkout: Checkout, run: str) -> int:
    """The process that a run of the flow is in: the oldest of those that know its id."""
    mark, found = f"PREFECT__FLOW_RUN_ID={run}".encode(), []
    for pid in processes(checkout):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return min(found)


@pytest.mark.parametrize(("path", "shown"), [("v2/deployments", "Deployments"), ("dashboard", "Switch to V2 UI")])
def test_the_pages_talk_to_their_own_server_alone(prefect_server, page, path, shown):
    own, abroad = prefect_server.removesuffix("api"), []

    def refuse(route: Any) -> None:
        abroad.append(route.request.url)
        route.abort()

    page.route(lambda url: not url.startswith(own), refuse)
    page.goto(f"{own}{path}", wait_until="networkidle")
    page.get_by_text(shown).first.wait_for()
    assert abroad == []


def test_a_run_is_started_from_the_form_with_a_changed_parameter(small, prefect_server, page):
    checkout, deployment = small
    page.goto(ui(prefect_server, f"deployments/deployment/{deployment}?tab=Description"))
    page.get_by_text("A few stages.").wait_for()
    page.goto(ui(prefect_server, f"deployments/deployment/{deployment}/run"))
    page.get_by_label("Run Name").fill("From The Form")
    rounds = page.get_by_label("rounds (Optional)").first
    assert rounds.input_value() == "200"
    page.get_by_text("how many of the recorded messages, fewest samples first").wait_for()
    page.get_by_label("budget (Optional)").fill("77")
    page.get_by_text("fedavg", exact=True).first.click()
    offered = page.get_by_role("option").all_inner_texts()
    assert {"fedavg", "fedprox", "scaffold"} <= set(offered)
    page.get_by_role("option", name="fedavg").click()
    run = submitted(page)
    reaches(prefect_server, run, "COMPLETED")
    assert checkout.ran()[-2:] == ["attack", "report"]
    page.goto(ui(prefect_server, f"runs/flow-run/{run}?tab=TaskRuns"))
    for stage in ("partition", "train", "aggregate", "attack", "report"):
        page.get_by_text(stage, exact=True).first.wait_for()
    artifacts = call(prefect_server, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    assert {"changes", "stages", "summary", "report"} <= set(by_key)
    # Of the whole form, what was typed is what counts.
    assert by_key["changes"]["data"] == "```yaml\nattack:\n  budget: 77\n```"
    page.goto(ui(prefect_server, f"artifacts/artifact/{by_key['report']['id']}"))
    link = page.get_by_role("link", name="Open the report").get_attribute("href")
    assert page.goto(link).ok


def test_a_form_left_as_it_is_runs_in_the_checkout_itself(small, prefect_server, page):
    checkout, deployment = small
    page.goto(ui(prefect_server, f"deployments/deployment/{deployment}/run"))
    page.get_by_label("Run Name").fill("Untouched")
    assert page.get_by_label("rounds (Optional)").first.input_value() == "200"
    reaches(prefect_server, submitted(page), "COMPLETED")
    assert "untouched" not in checkout.dvc("exp", "list", "--name-only")
    tasks = call(prefect_server, "task_runs/filter", {"flow_runs": {"name": {"any_": ["Untouched"]}}})
    assert {task["state"]["name"] for task in tasks} == {"Unchanged"}


def test_a_failed_run_tells_a_webhook(small, prefect_server):
    checkout, deployment = small
    told: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    hook = ThreadingHTTPServer((HOST, 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    try:
        for _ in range(2):
            checkout.fedloom("notify", f"http://{HOST}:{hook.server_port}/")
        until(lambda: len(call(prefect_server, "automations/filter", {})) == 1)
        good = start(prefect_server, deployment)
        bad = start(prefect_server, deployment, further=["seed=13"])
        reaches(prefect_server, good, "COMPLETED")
        assert "brings bad luck" in reaches(prefect_server, bad, "FAILED")["message"]
        until(lambda: told)
        assert "notification" in checkout.fedloom("notify", "--off")
    finally:
        hook.shutdown()
    (message,) = told
    name = call(prefect_server, f"flow_runs/{bad}")["name"]
    assert message["text"].startswith(f"Fedloom run {name} of pipeline small is Failed:")
    assert "brings bad luck" in message["text"]
    assert message["text"].endswith(f"{prefect_server.removesuffix('/api')}/runs/flow-run/{bad}")
    assert call(prefect_server, "automations/filter", {}) == []


def test_schedules_that_collide_queue(checkout, prefect_server):
    checkout.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    checkout.environment["FEDLOOM_TEST_WAIT"] = "train=2"
    every = "schedule: {interval: 10}"
    with served(checkout, prefect_server, f"pipelines:\n  left: {{{every}}}\n  right: {{{every}}}\n") as found:

        def ended(name: str) -> list[dict]:
            wanted = {
                "deployments": {"id": {"any_": [found[name]]}},
                "flow_runs": {"state": {"type": {"any_": STOPPED}}},
            }
            return call(prefect_server, "flow_runs/filter", wanted)

        until(lambda: ended("left") and ended("right"), 120)
        pause(prefect_server, (found["left"], found["right"]))
        runs = ended("left") + ended("right")
    assert {run["state"]["type"] for run in runs} == {"COMPLETED"}
    assert all(run["name"].startswith(("left-", "right-")) for run in runs)
    assert checkout.ran() == ["train", "aggregate", "attack", "report"]
    assert "up to date" in checkout.dvc("status")


def test_a_run_that_died_with_its_server_can_be_retried_after_the_restart(checkout, prefect_server):
    checkout.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    pipeline = "pipelines:\n  orphan: {stages: [train]}\n"
    checkout.environment["FEDLOOM_TEST_WAIT"] = "train=1000"
    with served(checkout, prefect_server, pipeline) as found:
        run = start(prefect_server, found["orphan"])
        until(checkout.log.exists)
        for pid in processes(checkout):
            os.kill(pid, signal.SIGKILL)
    assert state(prefect_server, run)["type"] == "RUNNING"
    del checkout.environment["FEDLOOM_TEST_WAIT"]
    with served(checkout, prefect_server, pipeline):
        until(lambda: state(prefect_server, run)["type"] == "CRASHED")
        call(prefect_server, f"flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
        until(lambda: state(prefect_server, run)["type"] == "RUNNING")
        reaches(prefect_server, run, "COMPLETED")


@pytest.mark.slow
def test_a_run_cancelled_in_the_ui_leaves_no_process_and_the_next_one_works(real, prefect_server, page):
    checkout, deployment = real
    before = set(processes(checkout))
    run = start(prefect_server, deployment, further=["train.rounds=1000000", "train.engine.workers=2"])
    until(lambda: any("raylet" in command for command in processes(checkout).values()), 120)
    until(lambda: list((checkout.folder / ".fedloom" / "checkpoints").glob("*/round-*")), 120)
    choose(page, prefect_server, run, "Cancel")
    reaches(prefect_server, run, "CANCELLED")
    until(lambda: set(processes(checkout)) <= before, 60)
    assert list((checkout.folder / ".fedloom" / "worktrees").glob("*")) == []
    reaches(prefect_server, start(prefect_server, deployment, further=["train.rounds=2"]), "COMPLETED")


def test_a_killed_run_is_retried_in_the_ui_and_ends_with_the_same_model(real, prefect_server, page, tmp_path):
    checkout, deployment = real
    checkpoints = checkout.folder / ".fedloom" / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    run = start(prefect_server, deployment)
    until(lambda: list(checkpoints.glob("*/round-*")), 120)
    os.kill(flow_process(checkout, run), signal.SIGKILL)
    reaches(prefect_server, run, "CRASHED")
    assert not (checkout.folder / "artifacts" / "train").exists()
    choose(page, prefect_server, run, "Retry")
    until(lambda: state(prefect_server, run)["type"] != "CRASHED")
    reaches(prefect_server, run, "COMPLETED")
    logs = call(prefect_server, "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    assert any("train goes on after round" in entry["message"] for entry in logs)

    for stage in ("partition", "train"):
        command = (sys.executable, "-m", f"tasks.{stage}", "--artifacts", str(tmp_path))
        whole = checkout.start(*command)
        assert whole.wait(120) == 0, whole.stdout and whole.stdout.read()
    digests = {
        hashlib.sha256((folder / "train" / "model.safetensors").read_bytes()).hexdigest()
        for folder in (tmp_path, checkout.folder / "artifacts")
    }
    assert len(digests) == 1
