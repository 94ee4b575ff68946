"""The real stages under all four systems, on a federation that is small enough to train in seconds."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import Checkout, git, project

SMALL = {
    "partition": {"dataset": {"name": "wine"}, "clients": 5, "split": {"name": "iid"}},
    "model": {"name": "logistic"},
    "train": {"rounds": 3, "cohort": 5, "engine": {"workers": 0, "compile": False}},
    "attack": {"suite": [{"name": "labels"}], "defences": [{"name": "none"}], "messages": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> tuple[Checkout, str]:
    """A checkout of the project with a small `params.yaml`, run once, and what the run said."""
    checkout = project(tmp_path_factory.mktemp("real") / "checkout", SMALL)
    del checkout.environment["FEDLOOM_TRACKING"]
    checkout.environment |= {"PREFECT_API_URL": prefect_server, "OMP_NUM_THREADS": "1"}
    return checkout, checkout.fedloom("run")


def test_it_ends_with_a_page_that_stands_alone(run):
    checkout, said = run
    (report,) = (checkout.folder / "reports").glob("*.html")
    assert str(report) in said
    assert report.read_bytes() == (checkout.folder / "artifacts" / "report" / "index.html").read_bytes()


def test_mlflow_has_a_run_a_stage_that_leads_back_to_code_data_and_flow(run):
    checkout, _ = run
    client = mlflow.MlflowClient(f"sqlite:///{checkout.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("fedloom").experiment_id])
    parents = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    children = {found.data.tags["dvc.stage"]: found for found in runs if found not in parents}
    assert list(Counter(found.info.status for found in runs)) == ["FINISHED"]
    assert set(children) == {"partition", "train", "aggregate", "attack", "report"}
    assert len(parents) == 1
    filed = {path.parent.name for path in (checkout.folder / ".dvc" / "cache" / "runs").glob("*/*/*")}
    assert {found.data.tags["dvc.key"] for found in children.values()} == filed
    flow = parents[0].data.tags["prefect.flow_run_id"]
    for found in children.values():
        assert found.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert found.data.tags["prefect.flow_run_id"] == flow
        assert found.data.tags["git.commit"] == git(checkout.folder, "rev-parse", "HEAD")
        assert found.data.tags["git.dirty"] == "false"
    train = children["train"].info.run_id
    accuracy = client.get_metric_history(train, "test_accuracy")
    assert sorted(point.step for point in accuracy) == [1, 2, 3]
    sent = client.get_metric_history(train, "total_bytes_up")
    by_bytes = client.get_metric_history(train, "by_bytes_up/test_accuracy")
    assert sorted(point.step for point in by_bytes) == sorted(int(point.value) for point in sent)
    assert sorted(point.value for point in by_bytes) == sorted(point.value for point in accuracy)
    assert children["train"].info.run_name == f"{parents[0].info.run_name} train"
    assert parents[0].info.run_name.startswith("default-")
    assert parents[0].data.metrics["train.accuracy"] == max(accuracy, key=lambda point: point.step).value
    assert flow in parents[0].data.tags["mlflow.note.content"]
    assert [item.path for item in client.list_artifacts(parents[0].info.run_id)] == [f"{parents[0].info.run_name}.html"]


def test_the_registered_model_answers_in_a_fresh_process_without_the_project(run, tmp_path):
    checkout, _ = run
    code = (
        "import sys, mlflow, numpy as np; mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/fedloom-wine-logistic@champion')\n"
        "print(np.asarray(model.predict(np.zeros((2, 13), np.float32))).shape)"
    )
    elsewhere = Checkout(tmp_path)
    del elsewhere.environment["PYTHONPATH"]
    process = elsewhere.start(sys.executable, "-c", code, f"sqlite:///{checkout.folder}/mlflow.db")
    assert process.communicate(timeout=120)[0].strip().endswith("(2, 3)")


def test_what_was_run_is_run_once(run):
    checkout, _ = run
    assert "Nothing has changed" in checkout.fedloom("run")
    assert "up to date" in checkout.dvc("repro")
    # A clone that shares the cache is made of it alone.
    clone = checkout.folder.parent / "clone"
    git(checkout.folder, "add", "-A")
    git(checkout.folder, "commit", "-q", "-m", "Run")
    git(checkout.folder, "clone", "-q", str(checkout.folder), str(clone))
    shutil.copytree(checkout.folder / ".dvc" / "cache", clone / ".dvc" / "cache")
    assert "Running stage" not in Checkout(clone).dvc("repro")
    assert git(clone, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_sweep_compares_what_its_runs_measured(run):
    checkout, _ = run
    text = """
pipelines: {default: {}}
sweeps:
  lengths:
    list: [{name: short, overrides: {train: {rounds: 1}}}, {name: long}]
    grid: {attack.messages: [2]}
    resources: {parallel: 2}
"""
    (checkout.folder / "pipelines.yaml").write_text(text)
    said = checkout.fedloom("sweep", "lengths")
    page = (checkout.folder / "reports" / "lengths.html").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{checkout.folder}/mlflow.db")
    found = client.search_runs(["1"], "tags.`fedloom.sweep` = 'lengths'")
    assert len({run.data.tags["fedloom.run"] for run in found}) == 2
    (_, *rows) = (line.split() for line in said.splitlines() if line.startswith(("cell ", "1 ", "2 ")))
    assert [row[1:4] for row in rows] == [[case, "2", "finished"] for case in ("short", "long")]
    for parent in found:
        name = parent.data.tags["fedloom.run"]
        kept = git(checkout.folder, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}")
        metrics = json.loads(git(checkout.folder, "show", f"{kept}:metrics/train.json"))
        assert metrics["rounds"] == (1 if "short" in name else 3)
        assert f'data-value="{metrics["bytes_up"]}"' in page
        assert f'href="{name}.html"' in page and f"/runs/{parent.info.run_id}" in page
        assert (checkout.folder / "reports" / f"{name}.html").exists()
    # The models of so many tries are not for the registry.
    assert len(client.search_model_versions("name='fedloom-wine-logistic'")) == 1


def test_the_same_run_elsewhere_gives_the_same_hashes(run, tmp_path: Path):
    """Nothing of time, place or process is in the outputs of a stage."""
    checkout, _ = run
    clone = tmp_path / "clone"
    git(checkout.folder, "clone", "-q", str(checkout.folder), str(clone))
    other = Checkout(clone)
    other.environment |= {"OMP_NUM_THREADS": "2"}
    other.dvc("repro", "--force")
    lock = YAML(typ="safe").load(checkout.folder / "dvc.lock")["stages"]
    again = YAML(typ="safe").load(clone / "dvc.lock")["stages"]
    differ = [
        out["path"]
        for name, entry in lock.items()
        for out, repeated in zip(entry["outs"], again[name]["outs"], strict=True)
        if out["md5"] != repeated["md5"]
    ]
    assert [path for path in differ if path not in ("artifacts/timings.jsonl", "artifacts/report")] == []
    assert json.loads((clone / "metrics" / "train.json").read_text())["rounds"] == 3
