"""Takes the pictures of the documentation from the running software, or those that are named.

python docs/take_pictures.py [NAME ...]

A copy of the checkout follows docs/tutorial.md with all four systems, and is looked at in a browser. It takes some
minutes, and a chromium on the PATH; the pictures go to docs/pictures.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDTH, HEIGHT, COLOURS = 1100, 760, 128
PATIENCE = 600.0
SWEEP = "privacy-utility"
EXPERIMENT = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=fedloom"


class Reader:
    """A copy of the checkout, with a commit of its own, in which a reader of the tutorial works."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        own = ("DVC", "FEDLOOM", "MLFLOW", "PREFECT", "RAY")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
            "PYTHONPATH": str(folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
        }
        git(folder, "init", "-q", "-b", "main")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "Start")

    def run(self, *arguments: str) -> str:
        """What a `fedloom` command prints; it must succeed."""
        command = [sys.executable, "-m", "flows.cli", *arguments]
        print("$ fedloom", *arguments, flush=True)
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, stdout=-1, check=True)
        return done.stdout

    def report(self) -> str:
        """The address of the newest report."""
        return Path("".join(self.run("report").splitlines())).as_uri()

    def prepare(self) -> None:
        """Writes what the tutorial has its reader write before the first audit."""
        text = TUTORIAL.read_text()
        ((path, code),) = re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        (self.folder / path).write_text(code)
        subprocess.run([sys.executable, path], cwd=self.folder, check=True)
        pipeline = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
        pipelines = self.folder / "pipelines.yaml"
        pipelines.write_text(pipelines.read_text().replace("\npipelines:\n", f"\npipelines:\n{pipeline}\n", 1))

    @contextmanager
    def up(self) -> Iterator["Servers"]:
        """`fedloom up` for the block."""
        print("$ fedloom up", flush=True)
        log = self.folder.parent / "up.txt"
        with log.open("w") as output:
            command = [sys.executable, "-m", "flows.cli", "up"]
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=output, stderr=output)
            try:
                until(lambda: process.poll() is not None or "ready" in log.read_text())
                said = dict(re.findall(r"^(prefect|mlflow) +│ (http\S+)$", log.read_text(), re.MULTILINE))
                yield Servers(**said)
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(90)


class Servers:
    """Prefect and MLflow, at their addresses."""

    def __init__(self, prefect: str, mlflow: str):
        self.prefect, self.mlflow = prefect, mlflow

    def ask(self, path: str, body: dict | None = None) -> Any:
        """What Prefect's API answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.prefect}/api/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def page(self, path: str) -> str:
        return f"{self.prefect}/v2/{path}"

    def deployment(self, name: str) -> str:
        (found,) = self.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found["id"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a reader", "-c", "user.email=reader@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives, once it holds."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("did not happen in time")
        time.sleep(0.5)
    return found


def take(page: Page, name: str, **what: Any) -> None:
    """Writes what ``page`` shows to docs/pictures, in few colours, which keeps it small."""
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled", **what))).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(PICTURES / f"{name}.png", optimize=True)
    print(f"docs/pictures/{name}.png", flush=True)


def report(reader: Reader, page: Page) -> None:
    """The top of the report of the first run."""
    page.goto(reader.report())
    take(page, "report")


def reconstructions(reader: Reader, page: Page) -> None:
    """The private digits that leak most."""
    page.goto(reader.report())
    page.get_by_role("heading", name="Side by side").evaluate(
        "heading => heading.scrollIntoView({behavior: 'instant'})"
    )
    take(page, "reconstructions")


def comparison(reader: Reader, page: Page) -> None:
    """What the cells of the example sweep cost and what came of them."""
    reader.run("sweep", SWEEP)
    page.goto((reader.folder / "reports" / f"{SWEEP}.html").as_uri())
    page.get_by_role("heading", name="Accuracy against its price").evaluate(
        "heading => heading.scrollIntoView({behavior: 'instant'})"
    )
    take(page, "comparison")


def prefect_form(servers: Servers, page: Page) -> None:
    """The form of the audit, where the training is set."""
    page.goto(servers.page(f"deployments/deployment/{servers.deployment('audit')}/run"))
    page.get_by_label("rounds (Optional)").first.scroll_into_view_if_needed()
    take(page, "prefect-form")


def prefect_run(servers: Servers, page: Page) -> None:
    """A run of the audit in which nothing has changed."""
    path = f"deployments/{servers.deployment('audit')}/create_flow_run"
    run = servers.ask(path, {"name": "audit-by-hand"})["id"]
    state = until(lambda: (now := servers.ask(f"flow_runs/{run}")["state"])["type"] in FINAL and now)
    if state["type"] != "COMPLETED":
        raise RuntimeError(state["message"])
    page.goto(servers.page(f"runs/flow-run/{run}?tab=TaskRuns"))
    page.get_by_text("Restored").first.wait_for()
    page.wait_for_timeout(3000)
    take(page, "prefect-run")


def mlflow_runs(servers: Servers, page: Page) -> None:
    """The table of all runs."""
    with urllib.request.urlopen(f"{servers.mlflow}{EXPERIMENT}", timeout=60) as reply:
        experiment = json.load(reply)["experiment"]["experiment_id"]
    page.goto(f"{servers.mlflow}/#/experiments/{experiment}/runs")
    page.get_by_role("link", name="audit-").first.wait_for()
    page.wait_for_timeout(3000)
    take(page, "mlflow-runs")


FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
OF_REPORTS = {"report": report, "reconstructions": reconstructions, "comparison": comparison}
OF_SERVERS = {"prefect-form": prefect_form, "prefect-run": prefect_run, "mlflow-runs": mlflow_runs}
ALL = [*OF_REPORTS, *OF_SERVERS]


def main(names: list[str]) -> None:
    if unknown := set(names) - set(ALL):
        sys.exit(f"error: no such picture: {', '.join(unknown)}; there are {', '.join(ALL)}")
    wanted = set(names or ALL)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        reader = Reader(Path(folder) / "fedloom")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(PATIENCE * 1000)
        if wanted & {*OF_REPORTS}:
            reader.run("run")
        for name in filter(wanted.__contains__, OF_REPORTS):
            OF_REPORTS[name](reader, page)
        if wanted & {*OF_SERVERS}:
            reader.prepare()
            reader.run("run", "audit")
            with reader.up() as servers:
                for name in filter(wanted.__contains__, OF_SERVERS):
                    OF_SERVERS[name](servers, page)


if __name__ == "__main__":
    main(sys.argv[1:])
