"""docs/drift.md, followed word by word with all four systems: data grow, and the champion is succeeded or stays."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import mlflow
import pytest
from ruamel.yaml import YAML

from tasks.artifacts import read_json
from tasks.tracking import flatten
from tests.flows.conftest import ROOT, Checkout, git

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "drift.md").read_text()
ALL = ["partition", "train", "aggregate"]
"""The stages that make a difference here: to be quick, those after them are left out, and the limit on an attack."""
NAME = "fedloom-sites-logistic"


class Story:
    """What the commands of the page have said, one after another, and how things stood after each."""

    def __init__(self, folder: Path, url: str):
        self.checkout, self.url = Checkout(folder), url
        del self.checkout.environment["FEDLOOM_TRACKING"]
        self.checkout.environment |= {"PREFECT_API_URL": url, "OMP_NUM_THREADS": "1"}
        self.client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        self.runs: list[str] = []
        self.aliases: list[dict[str, str]] = []

    def run(self, command: str) -> None:
        if command.startswith("fedloom "):
            self.runs.append(self.checkout.fedloom(*command.split()[1:]))
            aliases = self.client.get_registered_model(NAME).aliases
            self.aliases.append({alias: str(version) for alias, version in aliases.items()})
        else:
            subprocess.run(command, shell=True, cwd=self.checkout.folder, env=self.checkout.environment, check=True)

    def stages(self, run: int) -> dict[str, str]:
        """What each stage did in a run."""
        rows = [line.split() for line in self.runs[run].splitlines()]
        return {row[0]: row[1] for row in rows if row and row[0] in ALL and len(row) == 3}

    def tags(self, version: int) -> dict[str, str]:
        return self.client.get_model_version(NAME, str(version)).tags

    def trained(self, version: int) -> tuple[float, dict[str, str]]:
        """The training loss of the first round and the parameters of the run that a version is from."""
        aggregated = self.client.get_run(self.client.get_model_version(NAME, str(version)).run_id)
        parent = aggregated.data.tags["mlflow.parentRunId"]
        runs = self.client.search_runs([aggregated.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
        (train,) = [run for run in runs if run.data.tags["dvc.stage"] == "train"]
        first = min(self.client.get_metric_history(train.info.run_id, "loss"), key=lambda point: point.step)
        return first.value, self.client.get_run(parent).data.tags


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Story:
    folder = tmp_path_factory.mktemp("drift") / "checkout"
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith(
            ("tests/", "docs/", "metrics/", "dvc.lock", "replications/", "benchmarks/")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    document = YAML().load(folder / "params.yaml")
    document["train"]["engine"] |= {"workers": 0, "compile": False}
    YAML().dump(document, folder / "params.yaml")
    document = YAML().load(folder / "pipelines.yaml")
    growing = document["pipelines"]["growing"]
    growing["stages"] = ALL[-1:]
    del growing["promote"]["at_most"]
    YAML().dump(document, folder / "pipelines.yaml")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Start")
    ((path, text),) = re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (folder / path).write_text(text)
    story = Story(folder, prefect_server)
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            story.run(line.removeprefix("$ "))
    return story


def test_the_page_shows_the_pipeline_as_it_is():
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    own = YAML(typ="safe").load(ROOT / "pipelines.yaml")["pipelines"]["growing"]
    del own["description"]
    assert YAML(typ="safe").load(shown)["growing"] == own
    # The numbers of the default run, which has the same attacks.
    assert set(own["promote"]["at_most"]) <= set(flatten(read_json(ROOT / "metrics" / "attack.json"), "attack"))


def test_the_first_model_starts_afresh_and_becomes_the_champion(story):
    assert f"{NAME} has no champion yet: starts from fresh weights" in story.runs[0]
    assert set(story.stages(0).values()) == {"ran"}
    assert story.aliases[0] == {"champion": "1", "candidate": "1"}
    assert "there was no champion" in story.tags(1)["fedloom.promotion"]


def test_a_new_file_is_a_new_client_and_training_goes_on_from_the_champion(story):
    assert f"starts from the champion of {NAME}, version 1" in story.runs[1]
    assert set(story.stages(1).values()) == {"ran"}
    fresh, _ = story.trained(3)
    warm, _ = story.trained(2)
    assert warm < fresh, "the third run has the same data and starts from fresh weights"


def test_the_better_model_succeeds_the_champion_which_is_tested_on_the_data_of_today(story):
    assert story.aliases[1] == {"champion": "2", "candidate": "2"}
    said = story.tags(2)["fedloom.promotion"]
    assert said in story.runs[1] and story.trained(2)[1]["fedloom.promotion"] == said
    new, standing = map(float, re.findall(r"0\.\d{4}", said)[:2])
    assert new == pytest.approx(float(story.tags(2)["accuracy"]), abs=1e-4)
    # What the champion was registered with was about the old test set.
    assert standing < float(story.tags(1)["accuracy"]) - 0.05
    assert new > standing + 0.005


def test_without_new_data_nothing_runs_although_the_champion_is_another(story):
    assert set(story.stages(2).values()) <= {"restored", "unchanged"}
    assert "nothing to go on to" in story.runs[2]
    assert story.aliases[2] == story.aliases[1]


def test_a_worse_model_stays_a_candidate_and_it_is_said_why(story):
    assert story.stages(3)["partition"] in ("restored", "unchanged")
    assert story.aliases[3] == {"champion": "2", "candidate": "3"}
    said = story.tags(3)["fedloom.promotion"]
    assert "stays a candidate: its accuracy" in said and "not better than the champion's" in said
    assert said in story.runs[3] and story.trained(3)[1]["fedloom.promotion"] == said


def test_the_ui_has_the_decisions(story):
    wanted = {"artifacts": {"key": {"any_": ["promotion"]}}}
    found = httpx.post(f"{story.url}/artifacts/filter", json=wanted).json()
    shown = "\n".join(artifact["data"] for artifact in found)
    for version in (1, 2, 3):
        assert story.tags(version)["fedloom.promotion"] in shown


def test_the_experiments_repeat_without_the_registry(story):
    """What a run started from is in its parameters, as a file of that content in the main checkout."""
    folder = story.checkout.folder
    names = git(folder, "for-each-ref", "--sort=creatordate", "--format=%(refname)", "refs/exps").split()
    starts = [
        YAML(typ="safe").load(git(folder, "show", f"{name}:params.yaml"))["model"].get("start", {"name": "fresh"})
        for name in names
        if "stash" not in name
    ]
    assert [start["name"] for start in starts].count("file") == 2
    for start in starts:
        if start["name"] == "file":
            assert os.path.basename(start["path"]) == f"{start['sha256']}.safetensors"
            assert (folder / start["path"]).exists() and start["head"]
