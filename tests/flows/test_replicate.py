"""``fedloom replicate``: which cells run again and which do not, on stages that take no time; and a real toy of two
rounds, killed half-way and run to the end."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from flows import cells, claims, reference, replicate, verdicts
from flows.overrides import merge
from tasks.artifacts import read_json, read_lines, write_json
from tasks.config import Refused
from tasks.params import load
from tasks.partition.stage import partition
from tasks.tracking import Tracker
from tasks.train.stage import train

ROOT = Path(__file__).resolve().parents[2]

# A stage that notes that it ran and writes what is read of it: an accuracy that follows from learning rate and seed.
STAGE = """
import json, sys
from pathlib import Path

from ruamel.yaml import YAML

name, artifacts = {name!r}, Path(sys.argv[4])
params = YAML(typ="safe", pure=True).load(Path(sys.argv[2]))
lr, seed = params["train"]["algorithm"]["lr"], params["seed"]
with open({log!r}, "a") as log:
    log.write(f"{{name}} {{lr:g}} {{seed}}\\n")
if lr == 13.0 and name == "train":
    sys.exit("error: train: thirteen brings bad luck")
out, metrics = artifacts / name, artifacts.parent / "metrics"
out.mkdir(exist_ok=True)
metrics.mkdir(exist_ok=True)
if name == "partition":
    (out / "x.npy").write_text("samples")
    (metrics / "partition.json").write_text(json.dumps({{"clients": 3}}))
if name == "train":
    assert (artifacts / "partition" / "x.npy").read_text() == "samples"
    row = {{"round": params["train"]["rounds"], "test_accuracy": lr + seed / 100}}
    (out / "history.jsonl").write_text(json.dumps(row) + "\\n")
    (out / "summary.json").write_text(json.dumps({{"bytes_up": 10 * seed, "virtual_seconds": 2.0}}))
    (artifacts / "timings.jsonl").write_text(json.dumps({{"round": 1, "total": 0.5}}) + "\\n")
if name == "attack":
    (metrics / "attack.json").write_text(json.dumps({{"messages": {{"none": {{"psnr": 20.0 + seed}}}}}}))
"""
TOY = {
    "paper": {"authors": "A", "title": "B", "venue": "C", "where": "D"},
    "scaled": "smaller",
    "base": {"train": {"algorithm": {"name": "fedavg"}}},
    "arms": {
        "baseline": {"train": {"algorithm": {"lr": 0.5}}},
        "method": {"train": {"algorithm": {"name": "fedprox", "lr": 0.7}}},
    },
    "metrics": {"accuracy": {"name": "final", "column": "test_accuracy"}},
    "claims": [{"that": "method.accuracy >= baseline.accuracy + 0.1"}],
    "seeds": [0, 1],
}


def write(main: Path, slug: str, document: dict) -> None:
    (main / claims.FOLDER).mkdir(exist_ok=True)
    with (main / claims.FOLDER / f"{slug}.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    monkeypatch.setenv("FEDLOOM_TRACKING", "off")
    monkeypatch.delenv(cells.DATA, raising=False)


class Swift:
    """A checkout whose stages take no time."""

    def __init__(self, folder: Path):
        self.main, self.log = folder / "checkout", folder / "log"
        shutil.copytree(ROOT / "tasks", self.main / "tasks", ignore=shutil.ignore_patterns("__pycache__", "*.html"))
        shutil.copyfile(ROOT / "dvc.yaml", self.main / "dvc.yaml")
        for stage in ("partition", "train", "attack"):
            (self.main / "tasks" / stage / "__main__.py").write_text(STAGE.format(name=stage, log=str(self.log)))
            (self.main / "tasks" / stage / "stage.py").write_text("")
        for name in ("__init__", "attack/__init__", "partition/__init__", "train/__init__"):
            (self.main / "tasks" / f"{name}.py").write_text("")
        (self.main / "data").mkdir()
        (self.main / "docs").mkdir()

    def replicate(self, document: dict, seeds: tuple[int, ...] = (), unjudged: int = 0) -> list[str]:
        """The stages that ran for the replication, in order of their names."""
        write(self.main, "toy", document)
        self.log.write_text("")
        with open(os.devnull, "w") as nowhere:
            assert replicate.replicate(self.main, ["toy"], seeds, 2, Console(file=nowhere)) == unjudged
        return sorted(self.log.read_text().splitlines())

    @property
    def result(self) -> dict:
        return read_json(self.main / claims.FOLDER / "results" / "toy.json")

    def edit(self, name: str) -> None:
        path = self.main / name
        path.write_text(path.read_text() + "\n# edited\n")


@pytest.fixture
def swift(tmp_path) -> Swift:
    return Swift(tmp_path)


EVERY = [
    "attack 0.5 0", "attack 0.7 0", "partition 0.5 0", "partition 0.5 1",
    "train 0.5 0", "train 0.5 1", "train 0.7 0", "train 0.7 1",
]  # fmt: skip


def test_arms_share_their_partition_and_the_first_seed_is_attacked(swift):
    assert swift.replicate(TOY) == EVERY
    assert not list(swift.main.glob(".fedloom/replications/toy/*/artifacts/partition/*.npy")), "samples are not kept"


def test_what_is_unchanged_is_not_repeated(swift):
    swift.replicate(TOY)
    assert swift.replicate(TOY) == []
    assert swift.replicate(TOY | {"remark": "another word", "claims": [{"that": "method.accuracy > 0"}]}) == []
    changed = merge(TOY, {"arms": {"method": {"train": {"rounds": 7}}, "baseline": {"train": {"rounds": 7}}}})
    assert swift.replicate(changed) == EVERY
    faster = merge(changed, {"arms": {"method": {"train": {"algorithm": {"lr": 0.9}}}}})
    assert swift.replicate(faster) == [
        "attack 0.9 0", "partition 0.5 0", "partition 0.5 1", "train 0.9 0", "train 0.9 1"
    ]  # fmt: skip
    kept = [path.name.split("-")[:2] for path in swift.main.glob(".fedloom/replications/toy/*-*-*")]
    assert sorted(kept) == [[a, s] for a in ("baseline", "method", "partition") for s in "01"], "forerunners are swept"


@pytest.mark.parametrize("file", ["tasks/train/coordinator.py", "tasks/partition/card.py", "tasks/tree.py"])
def test_changed_code_of_a_stage_invalidates_every_cell(swift, file):
    swift.replicate(TOY)
    before = swift.result
    assert verdicts.current(swift.main, before)
    swift.edit(file)
    assert not verdicts.current(swift.main, before)
    assert swift.replicate(TOY) == EVERY
    assert swift.result["code"] != before["code"]


@pytest.mark.parametrize("file", ["tasks/report/page.py", "tasks/tracking.py"])
def test_code_that_touches_no_number_invalidates_none(swift, file):
    swift.replicate(TOY)
    swift.edit(file)
    assert swift.replicate(TOY) == []
    assert verdicts.current(swift.main, swift.result)


def test_what_is_edited_during_a_run_is_not_run(swift):
    """The stages run in a copy, so that the hash of a result is that of the code behind all of its numbers."""
    place = cells.workplace(swift.main, "toy")
    before = cells.code(swift.main)
    swift.edit("tasks/train/coordinator.py")
    assert cells.code(place) == before != cells.code(swift.main)


def test_where_one_cell_fails_the_others_are_kept_and_no_result_is_written(swift):
    bad = merge(TOY, {"arms": {"method": {"train": {"algorithm": {"lr": 13.0}}}}})
    assert "train 0.5 1" in swift.replicate(bad, unjudged=1)
    assert not (swift.main / claims.FOLDER / "results").exists()
    repaired = swift.replicate(TOY)
    assert [line for line in repaired if " 0.5 " in line and not line.startswith("partition")] == []


def test_seeds_of_ones_own_take_the_place_of_the_files(swift):
    swift.replicate(TOY)
    assert swift.replicate(TOY, seeds=(1, 4)) == [
        "attack 0.5 1", "attack 0.7 1", "partition 0.5 1", "partition 0.5 4", "train 0.5 4", "train 0.7 4"
    ]  # fmt: skip
    assert swift.result["seeds"] == [1, 4]
    assert swift.result["metrics"]["accuracy"]["method"]["values"] == pytest.approx([0.71, 0.74])


def test_an_arm_with_an_empty_suite_is_not_attacked(swift):
    quiet = merge(TOY, {"arms": {"baseline": {"attack": {"suite": []}}}})
    assert [line for line in swift.replicate(quiet) if line.startswith("attack")] == ["attack 0.7 0"]
    assert swift.result["arms"]["baseline"]["leaks"]["psnr"] is None
    assert swift.result["arms"]["method"]["leaks"]["psnr"] == 20.0


def test_arms_of_a_claim_that_spend_unequal_budgets_are_not_judged(swift):
    longer = merge(TOY, {"arms": {"longer": {"train": {"rounds": 9}}}})
    swift.replicate(longer)  # no claim speaks of it
    unequal = longer | {"claims": [{"that": "longer.accuracy >= baseline.accuracy"}]}
    swift.replicate(unequal, unjudged=1)
    assert swift.result["claims"][0]["that"] == TOY["claims"][0]["that"]


@pytest.mark.parametrize(("lr", "holds"), [(0.75, True), (0.625, True), (0.62, False)])
def test_the_inequality_decides_and_nothing_else(swift, lr, holds):
    toy = merge(TOY, {"arms": {"method": {"train": {"algorithm": {"lr": lr}}}}})
    swift.replicate(toy | {"claims": [{"that": "method.accuracy >= baseline.accuracy + 0.125"}]}, seeds=(0,))
    (claim,) = swift.result["claims"]
    assert claim["holds"] == holds
    assert claim["margin"]["mean"] == pytest.approx(lr - 0.625)
    assert ("| yes |" if holds else "| **no** |") in (swift.main / verdicts.PAGE).read_text()


def test_the_row_has_what_was_claimed_and_measured_and_what_it_cost(swift):
    swift.replicate(TOY)
    page = (swift.main / verdicts.PAGE).read_text()
    assert "`method.accuracy >= baseline.accuracy + 0.1`" in page
    assert "method.accuracy 0.705 ± 0.064; baseline.accuracy 0.505 ± 0.064" in page
    assert "`fedloom replicate toy`" in page
    result = swift.result
    assert result["seconds"] == pytest.approx(sum(sum(cell["seconds"].values()) for cell in result["cells"]), abs=2)
    assert result["arms"]["method"]["costs"]["bytes_up"] == 5
    assert result["arms"]["method"]["costs"]["train_seconds"] == 0.5
    table = reference.methods_page(swift.main)
    (row,) = [line for line in table.splitlines() if line.startswith("| `fedprox` ")]
    assert row.endswith("[toy](replications.md#toy): holds |")


def test_the_page_keeps_what_people_wrote_around_the_table(swift):
    page = swift.main / verdicts.PAGE
    page.write_text(f"Before.\n\n{verdicts.BEGIN}\noutdated\n{verdicts.END}\n\nAfter.\n")
    swift.replicate(TOY)
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("\n\nAfter.\n") and "outdated" not in text
    page.write_text("No markers.\n")
    with pytest.raises(Refused, match="between which the table goes"):
        verdicts.keep(swift.main, swift.result)


# Data that are not there


NEEDY = merge(TOY, {"base": {"partition": {"dataset": {"name": "idx", "path": "data/mnist"}}}})


def command(main: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "replicate", *arguments],
        cwd=main,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_replication_whose_data_are_missing_says_so_and_all_leaves_it_out(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    write(tmp_path, "needy", NEEDY)
    code, said = command(tmp_path, "--all")
    assert code == 0
    assert "needy is left out: replications/needy.yaml: baseline = 'data/mnist': does not exist" in said
    code, said = command(tmp_path)
    assert re.search(r"needy +A, C +1 +not run yet", said)
    code, said = command(tmp_path, "needy")
    assert code == 1
    assert f"set {cells.DATA} to a folder that has mnist" in said
    assert not (tmp_path / ".fedloom" / "replications").exists()


def test_data_are_also_found_where_the_environment_says(swift, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "mnist").mkdir(parents=True)
    (elsewhere / "mnist" / "file").write_text("from elsewhere")
    monkeypatch.setenv(cells.DATA, str(elsewhere))
    replication = claims.Replication.model_validate_json(json.dumps(NEEDY))
    assert cells.lacking(swift.main, "needy", replication) is None
    assert (cells.workplace(swift.main, "needy") / "data" / "mnist" / "file").read_text() == "from elsewhere"
    own = swift.main / "data" / "mnist"
    own.mkdir()
    (own / "file").write_text("own")
    assert (cells.workplace(swift.main, "needy") / "data" / "mnist" / "file").read_text() == "own"
    shutil.rmtree(own)
    monkeypatch.delenv(cells.DATA)
    assert "does not exist" in str(cells.lacking(swift.main, "needy", replication))


# The real thing


def example() -> dict:
    """The file that the page shows, as it is."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / verdicts.PAGE).read_text(), re.DOTALL | re.MULTILINE)
    return YAML(typ="safe", pure=True).load(text)


def start(main: Path, **environment: str) -> subprocess.Popen:
    """The command, as typed in a shell."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "replicate", "toy", "--seeds", "0", "--jobs", "1"],
        cwd=main,
        env=os.environ | {"PYTHONPATH": f"{main}{os.pathsep}{ROOT}", "COLUMNS": "200"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, str, dict[Path, int]]:
    """A checkout in which the example of the page, of two rounds, was killed after its first arm and then run to the
    end; what that said; and when the files were written that were there at the kill."""
    main = tmp_path_factory.mktemp("toy")
    shutil.copytree(ROOT / "tasks", main / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "dvc.yaml", main / "dvc.yaml")
    (main / "docs").mkdir()
    subprocess.run(["git", "init", "-q", str(main)], check=True)
    quick = {"base": {"train": {"rounds": 2}, "attack": {"suite": [{"name": "labels"}], "messages": 1}}}
    write(main, "toy", merge(example(), quick, {"arms": {"baseline": {"attack": {"suite": []}}}}))
    killed = start(main, FEDLOOM_TRACKING="off")
    for line in killed.stdout:
        if line.startswith("toy · baseline"):
            break
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in main.glob(".fedloom/replications/toy/*/artifacts/*/*.json*")}
    again = start(main, FEDLOOM_TRACKING="on")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    return main, said, before


def test_a_run_that_was_killed_goes_on_where_it_was(toy):
    main, said, before = toy
    assert "unchanged and not repeated" in said
    assert "toy · baseline" not in said
    first = {path: when for path, when in before.items() if "baseline-0-" in str(path)}
    assert any(path.name == "history.jsonl" for path in first)
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    folder = main / ".fedloom" / "replications" / "toy"
    assert sorted(path.name.split("-")[0] for path in folder.glob("*-0-*")) == ["baseline", "method", "partition"]


def test_the_result_is_what_the_stages_give_by_themselves(toy, tmp_path):
    main, _, _ = toy
    result, replication = read_json(main / claims.FOLDER / "results" / "toy.json"), claims.load(main, "toy")
    accuracy = {}
    for arm in ("baseline", "method"):
        write_json(tmp_path / arm / "params.yaml", cells.settings("toy", replication, arm, 0).model_dump(mode="json"))
        settings, artifacts = load(tmp_path / arm / "params.yaml"), tmp_path / arm / "artifacts"
        partition(settings, artifacts, Tracker("partition"))
        train(settings, artifacts, Tracker("train"))
        values = [row["test_accuracy"] for row in read_lines(artifacts / "train" / "history.jsonl")]
        accuracy[arm] = sum(values) / 2
        assert result["metrics"]["accuracy"][arm]["values"] == pytest.approx([accuracy[arm]], abs=1e-9)
        sent = read_json(tmp_path / arm / "metrics" / "train.json")["bytes_up"]
        assert result["arms"][arm]["costs"]["bytes_up"] == sent
    margin = accuracy["method"] - (accuracy["baseline"] + 0.01)
    assert result["claims"][0]["margin"]["mean"] == pytest.approx(margin, abs=1e-9)
    assert result["claims"][0]["holds"] == (margin >= 0)
    assert result["about"] == ["train.algorithm.fedprox"]
    assert result["arms"]["method"]["leaks"]["label_accuracy"] is not None


def test_mlflow_has_one_experiment_with_a_run_for_every_cell(toy):
    """Also for the cell that was finished before the kill, when nothing was recorded."""
    main, _, _ = toy
    with sqlite3.connect(main / "mlflow.db") as store:
        runs = store.execute(
            "SELECT e.name, r.name, r.status FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id"
        ).fetchall()
        rounds = store.execute("SELECT COUNT(*) FROM metrics WHERE key = 'test_accuracy'").fetchone()
    assert sorted(runs) == [("replication/toy", name, "FINISHED") for name in ("baseline-0", "method-0")]
    assert rounds == (4,)


# The pages of this checkout


def test_the_page_says_what_the_results_say():
    text = (ROOT / verdicts.PAGE).read_text()
    _, _, rest = text.partition(verdicts.BEGIN)
    shown, end, _ = rest.partition(verdicts.END)
    assert end
    found = verdicts.results(ROOT)
    assert shown.strip() == (verdicts.page(found) if found else "").strip()


@pytest.mark.parametrize("slug", verdicts.results(ROOT))
def test_a_result_says_what_its_numbers_say(slug: str):
    """Nobody has edited a verdict: every claim judged again from the metrics of the cells."""
    result = verdicts.results(ROOT)[slug]
    cells_ = {(cell["arm"], cell["seed"]): cell["metrics"] for cell in result["cells"]}

    def value(arm: str, seed: int, metric: str) -> float:
        found = cells_[arm, seed][metric]
        return float("inf") if found is None else found

    seeds = [
        {(arm, metric): value(arm, seed, metric) for arm in result["arms"] for metric in result["metrics"]}
        for seed in result["seeds"]
    ]
    for said in result["claims"]:
        judged = claims.Claim(that=said["that"], on=said["on"]).judge(seeds)
        assert judged.holds == said["holds"]


def test_the_example_of_the_page_is_a_replication():
    found = claims.Replication.model_validate_json(json.dumps(example()), strict=True)
    assert not list(found.conflicts())
    assert {cells.settings("toy", found, arm, 0).train.algorithm.epochs for arm in found.arms} == {5}
