"""Every command and example in the README, CONTRIBUTING and docs/ is true: run here, or in the test that is named."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from flows import combinations, reference, server
from flows.overrides import merge
from tasks import artifacts, tree
from tasks.params import build
from tasks.train.algorithms import FedAvg
from tasks.train.settings import TrainSettings
from tests.flows.test_serve import call
from tests.flows.test_up import Up
from tests.tasks.train.runs import SIZES, federation, run

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(sys.executable).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:make|fedloom|dvc|python -m|ruff) [^`]+)`")

SMALL = {
    "train": {"engine": {"workers": 0}},
    "attack": {
        "suite": [{"name": "inverting_gradients"}, {"name": "read_out"}],
        "defences": [{"name": "none"}],
        "messages": 1,
        "budget": 20,
    },
}
"""What the copy of the checkout leaves out of `params.yaml`, to be quick. It changes no number of the training."""

ELSEWHERE = {
    "make install": "Makefile",
    "make test-all": "Makefile",
    "make up": "tests/flows/test_up.py",
    "fedloom up": "tests/flows/test_up.py",
    "fedloom serve": "tests/flows/test_serve.py",
    "dvc push": "tests/flows/test_team.py",
    "dvc pull": "tests/flows/test_team.py",
    "fedloom notify": "tests/flows/test_ui.py",
    "fedloom report --open": "tests/flows/test_cli.py",
    "python -m tasks.partition": "tests/tasks/partition/test_docs.py",
    "python -m tasks.promotion": "tests/flows/test_drift.py",
    "python -m tasks.attack": "tests/tasks/attack/test_stage.py",
    "python -m tasks.train": "tests/tasks/train/test_stage.py",
    "python -m tasks.<stage>": "tests/tasks/train/test_stage.py",
    "fedloom show": "tests/flows/test_cli.py",
    "fedloom replicate": "tests/flows/test_replicate.py",
    "fedloom sweep": "tests/flows/test_sweep.py",
    "dvc exp show": "tests/flows/test_sweep.py",
    "dvc exp apply": "tests/flows/test_sweep.py",
    "dvc metrics diff": "Makefile",
    "dvc repro -s": "tests/flows/test_pipeline.py",
    "python -m benchmarks": "tests/test_benchmarks.py",
}
"""Commands that are not run here, and the file whose tests run them."""


class Checkout:
    """A copy of this checkout with a commit of its own, in which commands are run as a reader would."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.said = folder, {}
        for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        document = YAML(typ="safe").load(folder / "params.yaml")
        YAML().dump(merge(document, SMALL) | {"attack": SMALL["attack"]}, folder / "params.yaml")
        # What `make test ARGS=...` was told is not for the commands of a reader.
        strange = ("DVC", "MAKE", "MFLAGS", "ARGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)} | {
            "PATH": f"{VENV}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "PREFECT_API_URL": url,
            "FEDLOOM_TRACKING": "off",
            "OMP_NUM_THREADS": "1",
        }
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "a copy")

    def run(self, command: str) -> str:
        """What ``command`` prints; it must succeed. Installation is taken as done: what is here is what it installs."""
        if command not in self.said:
            typed = command.replace("make ", f"make -o install VENV={VENV.parent} ", 1)
            done = subprocess.run(
                typed,
                shell=True,
                executable="/bin/bash",
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            self.said[command] = done.stdout
        return self.said[command]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a reader", "-c", "user.email=reader@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("reader") / "fedloom"
    folder.mkdir()
    # One Prefect server for all commands, where each would start one of its own.
    server.prepare(folder)
    with server.serving(folder, services=False) as url:
        yield Checkout(folder, url)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[str]:
    """The commands of a page's console blocks, in order."""
    return [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_readme_work_one_after_another(checkout):
    page = ROOT / "README.md"
    assert commands(page)[0] == "make run"
    for command in commands(page):
        checkout.run(command)
    assert "Report:" in checkout.run("make run")
    assert "Nothing has changed" in checkout.run("fedloom run")
    assert "up to date" in checkout.run("dvc repro")
    assert Path(checkout.run("fedloom report").strip()).exists()
    assert "control variate" in checkout.run("fedloom show scaffold")


def test_the_numbers_of_the_readme_are_those_of_the_default_run(checkout):
    checkout.run("make run")
    train = artifacts.read_json(checkout.folder / "metrics" / "train.json")
    card = artifacts.read_json(checkout.folder / "metrics" / "partition.json")
    text = (ROOT / "README.md").read_text()
    accuracy, sent, seconds = re.findall(r"^\| .* \| ([\d.]+)(?: MB| s)? \|$", text, re.MULTILINE)
    assert float(accuracy) == pytest.approx(train["accuracy"], abs=0.005)
    assert float(sent) == pytest.approx(train["bytes_up"] / 1e6, abs=0.05)
    assert float(seconds) == pytest.approx(train["virtual_seconds"], abs=0.5)
    assert f"{card['smallest_client']}\nto {card['largest_client']} samples" in text


def test_the_commands_for_contributors_work(checkout):
    for command in commands(ROOT / "CONTRIBUTING.md"):
        checkout.run(command)


def test_the_commands_on_training_work(checkout):
    checkout.run("make run")
    for command in commands(ROOT / "docs" / "training.md"):
        checkout.run(command)


@pytest.mark.slow
def test_the_commands_on_orchestration_work(checkout):
    checkout.run("make run")
    for command in commands(ROOT / "docs" / "orchestration.md"):
        checkout.run(command)


@pytest.mark.parametrize("command", ["make help", "make dvc", "make doctor", "make lint"])
def test_the_other_targets_of_the_makefile_work(checkout, command):
    checkout.run("make run")
    checkout.run(command)


def files(page: Path) -> dict[str, str]:
    """The files that a page has its reader write, by their paths."""
    found = re.findall(r"`([\w/.-]+\.py)`:\n\n```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert not [path for path, _ in found if (ROOT / path).exists()], "what the page adds must not be there already"
    return dict(found)


def follow(checkout: Checkout, page: Path, package: str, union: str, added: str) -> None:
    """Writes the files of a page, puts ``added`` into a union as it says, and runs its commands."""
    written = files(page)
    for path, text in written.items():
        (checkout.folder / path).write_text(text)
    (line,) = [text for text in blocks(page, "python") if text not in written.values()]
    place = checkout.folder / package / "__init__.py"
    before = place.read_text()
    after = re.sub(rf"(\n{union} = one_of\(.*?),?\s*\)", rf"\1, {added})", before, flags=re.DOTALL)
    assert before != after
    place.write_text(after.replace("\nfrom ", f"\n{line}from ", 1))
    for command in commands(page):
        # Some of them were run before, on the code as it was.
        checkout.said.pop(command, None)
        checkout.run(command)
    assert added in (checkout.folder / "params.schema.json").read_text()


def kept(checkout: Checkout, stage: str, last: int = 1) -> dict[str, Any]:
    """The metrics of a stage in the run that was kept ``last``."""
    names = git(checkout.folder, "for-each-ref", "--sort=-creatordate", "--format=%(refname)", "refs/exps").split()
    name = [name for name in names if "/exec/" not in name and "stash" not in name][last - 1]
    return json.loads(git(checkout.folder, "show", f"{name}:metrics/{stage}.json"))


@pytest.mark.slow
def test_the_page_on_adding_a_method_can_be_followed_to_the_letter(checkout):
    follow(checkout, ROOT / "docs" / "add-a-method.md", "tasks/train/algorithms", "Algorithm", "FedNova")
    assert "takes more local steps does not count for more" in checkout.run("fedloom show fednova")
    metrics = kept(checkout, "train")
    assert metrics["rounds"] == 2
    # The 4 bytes of `steps` that the page speaks of, for ten clients in two rounds.
    assert metrics["bytes_up"] == 2 * 10 * 4 * (metrics["parameters"] + 1)


@pytest.mark.slow
def test_the_page_on_adding_an_attack_can_be_followed_to_the_letter(checkout):
    follow(checkout, ROOT / "docs" / "add-an-attack.md", "tasks/attack/attacks", "Method", "DistinctLabels")
    assert "one of them gets another" in checkout.run("fedloom show distinct_labels")
    assert 0 < kept(checkout, "attack")["attacks"]["distinct_labels"]["none"]["label_accuracy"] <= 1


@pytest.mark.slow
def test_the_page_on_ones_own_model_can_be_followed_to_the_letter(checkout):
    page = ROOT / "docs" / "own-model.md"
    ((path, text),) = files(page).items()
    (checkout.folder / path).write_text(text)
    for command in commands(page):
        checkout.run(command)
    # Two layers of 48 on 64 pixels, and ten classes.
    assert kept(checkout, "train")["parameters"] == 65 * 48 + 49 * 48 + 49 * 10
    for block in blocks(page, "yaml"):
        assert build(YAML(typ="safe").load(block))


@pytest.fixture(scope="module")
def tutorial(checkout) -> Iterator[tuple[Path, list[str]]]:
    """`pipelines.yaml` as the tutorial first has it, and the commands after `fedloom up`; those before it were run."""
    page = ROOT / "docs" / "tutorial.md"
    ((path, text),) = files(page).items()
    (checkout.folder / path).write_text(text)
    pipelines = checkout.folder / "pipelines.yaml"
    before = pipelines.read_text()
    pipelines.write_text(before.replace("\npipelines:\n", f"\npipelines:\n{blocks(page, 'yaml')[0]}\n", 1))
    activate = checkout.folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    typed = commands(page)
    served = typed.index("fedloom up")
    reports = []
    for command in typed[:served]:
        if command != "make run":
            checkout.said.pop(command, None)
        checkout.run(command)
        if command == "fedloom report":
            reports.append(Path(checkout.said[command].strip()).read_text())
    assert ["patients" in report for report in reports] == [False, True, True] and reports[1] != reports[2]
    yield pipelines, typed[served + 1 :]
    pipelines.write_text(before)


@pytest.mark.slow
def test_what_leaks_and_what_a_defence_costs_is_as_the_tutorial_says(checkout, tutorial):
    plain, noised = ({name: kept(checkout, name, last) for name in ("train", "attack")} for last in (2, 1))
    assert plain["train"]["accuracy"] > 0.8
    assert plain["attack"]["messages"]["none"]["recovered"] == 1, "of one client every record"
    assert noised["attack"]["together"]["recovered"] < 0.05 < plain["attack"]["together"]["recovered"]
    assert 0.7 < noised["train"]["accuracy"] < plain["train"]["accuracy"]
    assert noised["train"]["epsilon"] > 1000


@pytest.mark.slow
def test_the_pipeline_of_the_tutorial_is_served_scheduled_and_watched(checkout, tutorial, monkeypatch):
    pipelines, typed = tutorial
    audit, often, nightly = blocks(ROOT / "docs" / "tutorial.md", "yaml")
    pipelines.write_text(pipelines.read_text().replace(audit, audit + often, 1))
    # The reader has no server but the one that `up` starts.
    alone = {name: value for name, value in checkout.environment.items() if name != "PREFECT_API_URL"}
    monkeypatch.setattr(checkout, "environment", alone)
    up = Up(checkout)
    try:
        (known,) = call(up.api, "deployments/filter", {"deployments": {"name": {"any_": ["audit"]}}})
        (when,) = known["schedules"]
        assert (when["active"], when["schedule"]["cron"]) == (True, "*/2 * * * *")
        run = call(up.api, f"deployments/{known['id']}/create_flow_run", {"name": "quick"})["id"]
        up.until(lambda: call(up.api, f"flow_runs/{run}")["state_type"] in ("COMPLETED", "FAILED", "CRASHED"))
        tasks = call(up.api, "task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        outcomes = {task["name"]: task["state"]["name"] for task in tasks}
        assert {outcomes[name] for name in ("partition", "train", "aggregate", "attack", "report")} == {"Restored"}
        for command in typed:
            checkout.run(command)
        assert len(call(up.api, "automations/filter", {})) == 1
    finally:
        up.end()
    pipelines.write_text(pipelines.read_text().replace(often, nightly, 1))
    checkout.said.pop("fedloom validate")
    assert "are valid" in checkout.run("fedloom validate")


def test_pictures_are_those_that_the_script_takes():
    """None is missing, none is left over, none is large."""
    spec = importlib.util.spec_from_file_location("take_pictures", ROOT / "docs" / "take_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = ROOT / "docs" / "pictures"
    there = {path.name for path in folder.iterdir()}
    shown = [re.findall(r"!\[[^\]]+\]\((?:docs/)?pictures/([^)]+)\)", page.read_text()) for page in PAGES]
    assert there == {f"{name}.png" for name in script.ALL} == set(itertools.chain(*shown))
    assert max((folder / name).stat().st_size for name in there) < 150_000


def test_the_cluster_of_the_page_is_one_that_ray_would_read():
    jsonschema, ray = pytest.importorskip("jsonschema"), importlib.import_module("ray")
    page = ROOT / "docs" / "cluster.md"
    cluster, engine = (YAML(typ="safe").load(text) for text in blocks(page, "yaml"))
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert build(engine).train.engine.workers == 2


def test_every_page_is_in_the_index():
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert sorted(linked) == sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")


def test_the_two_exchanges_on_that_page_do_what_it_says(tmp_path):
    """With one local step FSVRG is gradient descent on the cohort's data; its messages are two down and two up."""
    text = (ROOT / "docs" / "add-a-method.md").read_text()
    (code,) = re.findall(
        r"^`tasks/train/algorithms/fsvrg\.py`:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    (tmp_path / "fsvrg.py").write_text(code)
    spec = importlib.util.spec_from_file_location("fsvrg", tmp_path / "fsvrg.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = federation(tmp_path / "partition")
    train = TrainSettings(cohort=len(SIZES), algorithm=FedAvg(batch_size=0))
    plain = run(data, train, rounds=2)
    corrected = run(data, train.model_copy(update={"algorithm": module.FSVRG(batch_size=0)}), rounds=2)
    for name, value in plain.model.items():
        torch.testing.assert_close(corrected.model[name], value, rtol=1e-5, atol=1e-6)
    assert corrected.ledger.bytes_up == 2 * plain.ledger.bytes_up
    model = tree.nbytes(plain.model)
    assert corrected.ledger.bytes_down == 2 * plain.ledger.bytes_down + len(SIZES) * model


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_is_left_untried(page):
    """Commands in the running text too: those in blocks of the pages above, of the Makefile, or tried elsewhere."""
    tried = {command for other in PAGES for command in commands(other)}
    tried |= {"make run", "make test", "make help", "make dvc", "make doctor", "make lint"}
    for found in [*INLINE.findall(page.read_text()), *commands(page)]:
        command = re.sub(r"\s+", " ", found)
        where = next((file for known, file in ELSEWHERE.items() if command.startswith(known)), None)
        assert command in tried or where, f"{page.name}: nothing tries `{command}`"
        assert where is None or (ROOT / where).exists(), f"{where} is to try `{command}`, but does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                titles = [re.sub(r"[^\w\- ]", "", t).strip().replace(" ", "-").lower() for t in headings(linked)]
                assert anchor in titles, f"{page.name}: {target}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def within(part: Any, whole: Any) -> bool:
    """Whether every field of ``part`` stands in ``whole`` with the same value; of a list, the entries' fields."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and within(part[name], whole[name]) for name in part)
    if isinstance(part, list) and part and isinstance(part[0], dict):
        return all(any(within(entry, other) for other in whole) for entry in part)
    return part == whole


def test_the_readme_shows_params_yaml_as_it_is():
    shown, own = blocks(ROOT / "README.md", "yaml")
    assert within(YAML(typ="safe").load(shown), YAML(typ="safe").load(ROOT / "params.yaml"))
    assert build(YAML(typ="safe").load(own))


def test_the_pages_that_are_written_from_the_types_are_current():
    assert (ROOT / reference.PAGE).read_text() == reference.page(), "run `python -m flows.reference`"
    assert (ROOT / reference.METHODS).read_text() == reference.methods_page(ROOT), "run `python -m flows.reference`"
    assert (ROOT / combinations.PAGE).read_text() == combinations.page(), "run `python -m flows.reference`"


def test_the_history_has_the_columns_that_the_page_on_training_names(checkout):
    checkout.run("make run")
    rows = artifacts.read_lines(checkout.folder / "artifacts" / "train" / "history.jsonl")
    section = (ROOT / "docs" / "training.md").read_text().partition("one row a round:")[2].partition("\n\n`summary")[0]
    named = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    # The default run waits for its cohorts.
    told = re.findall(r"`(\w+)`", "\n".join(row[1] for row in named if "schedules that do not wait" not in row[2]))
    assert sorted(told) == sorted(rows[0])
