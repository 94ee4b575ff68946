"""A checkout with five tiny stages under the project's own `dvc.yaml`, and a Prefect server on a free port."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import server
from flows.checkout import write

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "pipelines.yaml")

# A stage that says what it was run for, takes its time where it is told to, and writes what dvc.yaml expects.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path

from ruamel.yaml import YAML

name, params = {name!r}, YAML(typ="safe").load(Path("params.yaml"))
with open(os.environ["FEDLOOM_TEST_LOG"], "a") as log:
    log.write(f"{{name}} {{os.getcwd()}} {{os.getpid()}}\\n")
wait = dict(item.split("=") for item in os.environ.get("FEDLOOM_TEST_WAIT", "").split() if item)
for tenth in range(int(10 * float(wait.get(name, 0)))):
    print(f"[{{name}}] round {{tenth + 1}}/1000 0%", flush=True)
    time.sleep(0.1)
if params["seed"] == 13:
    sys.exit(f"error: {{name}}: params.yaml: seed = 13: brings bad luck")
out = Path("artifacts", name)
out.mkdir(parents=True, exist_ok=True)
values = json.dumps([params["seed"], params.get(name)])
for file in ("values.json", "history.csv", "clients.csv", "roc.csv", "index.html"):
    (out / file).write_text(values)
if name == "train":
    Path("artifacts/timings.jsonl").write_text("")
if name != "report":
    Path("metrics").mkdir(exist_ok=True)
    Path(f"metrics/{{name}}.json").write_text(json.dumps({{"seed": params["seed"]}}))
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """What ``condition`` gives, once it holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)
    return found


class Checkout:
    """A checkout in a temporary folder, with its own environment."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PREFECT_", "FEDLOOM_", "MLFLOW_"))
            },
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FEDLOOM_TEST_LOG": str(self.log),
            "FEDLOOM_TRACKING": "off",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "COLUMNS": "200",
            **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def ran(self) -> list[str]:
        """The stages that really ran, since last asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def fedloom(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """The output of a `fedloom` command, which has to end with ``code``."""
        process = self.start(sys.executable, "-m", "flows.cli", *arguments, **environment)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == code, output
        return output

    def make(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """A started target of the Makefile. Installation is taken as done: what is here is what it installs."""
        return self.start("make", "-o", "install", f"VENV={sys.prefix}", *arguments, **environment)

    def dvc(self, *arguments: str) -> str:
        process = self.start(sys.executable, "-m", "dvc", *arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


def project(folder: Path, changes: dict) -> Checkout:
    """A checkout of the project itself, with ``changes`` in its `params.yaml`; nothing has run in it."""
    for name in git(ROOT, "ls-files").splitlines():
        if (ROOT / name).is_file() and not name.startswith(
            ("tests/", "docs/", "metrics/", "dvc.lock", "replications/")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write(folder / "params.yaml", changes)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Start")
    return Checkout(folder)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose stages have all run once."""
    folder = tmp_path_factory.mktemp("template") / "checkout"
    folder.mkdir()
    for name in SETTINGS:
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    (folder / "data").mkdir()
    (folder / "data" / "README.md").write_text("Data goes here.\n")
    for stage in ("partition", "train", "aggregate", "attack", "report"):
        (folder / "tasks" / stage / "__main__.py").write_text(STAGE.format(name=stage))
    git(folder, "init", "--quiet", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Start")
    checkout = Checkout(folder)
    checkout.dvc("repro")
    assert checkout.ran() == ["partition", "train", "aggregate", "attack", "report"]
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Run")
    return folder


@pytest.fixture
def checkout(reproduced: Path, tmp_path: Path) -> Checkout:
    """A fresh copy of the checkout in which everything is up to date."""
    folder = tmp_path / "checkout"
    shutil.copytree(reproduced, folder, symlinks=True)
    return Checkout(folder)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real server, with the services that schedules need."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.delenv("PREFECT_API_URL", raising=False)
        with server.serving(home) as url:
            yield url
