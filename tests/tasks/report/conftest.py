"""A whole small run, made by the real stages, and its page as a parsed document."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import params as schema
from tasks.report.run import Run
from tasks.report.stage import made

ROOT = Path(__file__).resolve().parents[3]
PARAMS = {
    "partition": {"clients": 12, "validation_fraction": 0.3},
    "model": {"name": "logistic"},
    "train": {
        "rounds": 4,
        "cohort": 4,
        "algorithm": {"name": "fedavg", "lr": 0.3},
        "engine": {"workers": 0},
        "transcript": {"rounds": ["first"], "clients": 2},
    },
    "aggregate": {"personalise": {"name": "finetune"}},
    "attack": {
        "suite": [{"name": "inverting_gradients", "restarts": 1}, {"name": "labels"}, {"name": "membership"}],
        "messages": 1,
        "budget": 3,
        "candidates": 60,
    },
}
VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


class Document(HTMLParser):
    """A page as a list of elements, each with its tag, attributes, ancestors and text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(str(text))
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "inside": [e["tag"] for e in self.open], "text": ""}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    @property
    def text(self):
        return self.all("body")[0]["text"].replace("\N{NO-BREAK SPACE}", " ")

    def table(self, caption):
        """The cells of the rows under ``caption``, by the row's header; what is folded under a chart does not count."""
        captions = [i for i, e in enumerate(self.elements) if e["tag"] == "caption" and "figure" not in e["inside"]]
        start = next(i for i in captions if self.elements[i]["text"].startswith(caption))
        rows: dict[str, list[str]] = {}
        head, cells = [], None
        for element in self.elements[start + 1 :]:
            if element["tag"] == "table":
                break
            text = element["text"].replace("\N{NO-BREAK SPACE}", " ")
            if element["tag"] == "th" and element["attrs"].get("scope") == "col":
                head.append(text)
            elif element["tag"] == "th":
                cells = rows.setdefault(text, [])
            elif element["tag"] == "td":
                cells.append(text)
        return head, rows


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a run of all stages but the report."""
    folder = tmp_path_factory.mktemp("run")
    YAML().dump(PARAMS, folder / "params.yaml")
    env = os.environ | {"PYTHONPATH": str(ROOT), "FEDLOOM_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    for stage in ("partition", "train", "aggregate", "attack"):
        command = [sys.executable, "-m", f"tasks.{stage}"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def artifacts(finished, tmp_path) -> Path:
    """A copy of what the stages published, to spoil."""
    return Path(shutil.copytree(finished / "artifacts", tmp_path / "artifacts"))


@pytest.fixture(scope="session")
def params():
    return schema.build(PARAMS)


@pytest.fixture(scope="session")
def page(finished, params) -> str:
    return made(Run(params, finished / "artifacts"))


@pytest.fixture(scope="session")
def document(page) -> Document:
    return Document(page)
