"""MLflow: one parent, a child a stage, the tags that tie them to git and DVC; and life without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from ruamel.yaml import YAML

from tasks import params, tracking

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty database, made once, for that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(database, tmp_path, monkeypatch):
    """A git checkout with a store of its own, and no trace of the one of another test."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    git(folder, "init", "-q", "-b", "main")
    (folder / ".gitignore").write_text("mlflow.db*\nmlartifacts\n.fedloom\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Start")
    monkeypatch.chdir(folder)
    for name in (tracking.PARENT, tracking.FLOW_RUN, tracking.TASK_RUN, tracking.UI, "DVC_STAGE", "FEDLOOM_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    caches = (tracking.main_checkout, tracking._mlflow, tracking._experiment, tracking.dvc_key)
    for cached in caches:
        cached.cache_clear()
    yield folder
    while mlflow.active_run():
        mlflow.end_run()
    for cached in caches:
        cached.cache_clear()


def runs() -> list:
    client = mlflow.MlflowClient(tracking.store())
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids, order_by=["attributes.start_time"])


def named(name: str) -> list:
    """The parents of a name, or the children of a stage."""
    return [run for run in runs() if name in (run.info.run_name, run.data.tags.get("dvc.stage"))]


def test_the_stages_of_one_repro_share_a_parent_and_other_parameters_have_another(folder):
    settings = params.Params()
    for stage in ("partition", "train"):
        with tracking.open_tracker(stage, settings):
            pass
    with tracking.open_tracker("train", params.Params(seed=1)):
        pass
    parents = {run.data.tags["mlflow.parentRunId"] for run in named("partition") + named("train")}
    assert len(parents) == 2
    assert len({run.data.tags["mlflow.parentRunId"] for run in [*named("partition"), named("train")[0]]}) == 1
    assert all(run.info.status == "FINISHED" for run in runs())
    (parent,) = [run for run in runs() if run.info.run_id == named("partition")[0].data.tags["mlflow.parentRunId"]]
    assert parent.data.params["train.algorithm.name"] == "fedavg"
    assert parent.data.tags["git.commit"] == git(folder, "rev-parse", "HEAD")


def test_numbers_series_and_files_arrive_and_what_is_no_number_is_left_out(folder):
    (folder / "roc.csv").write_text("fpr,tpr\n")
    with tracking.open_tracker("train", params.Params()) as tracker:
        for step in range(2500):
            tracker.metrics({"loss": 1 / (step + 1), "epsilon": None, "notes": {}}, step)
        tracker.artifact(folder / "roc.csv", "tables")
        run_id = tracker.run_id
    client = mlflow.MlflowClient(tracking.store())
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in sorted(history, key=lambda p: p.step)] == [
        (step, 1 / (step + 1)) for step in range(2500)
    ]
    assert set(client.get_run(run_id).data.metrics) == {"loss"}
    assert (folder / "mlartifacts" / run_id / "artifacts" / "tables" / "roc.csv").exists()


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_stage_that_breaks_off_is_marked(folder, error, status):
    with pytest.raises(error), tracking.open_tracker("train", params.Params()):
        raise error("for a reason")
    (run,) = named("train")
    assert run.info.status == status
    assert "for a reason" in run.data.tags["fedloom.error"]


def test_a_flow_hands_its_ids_to_the_stage(folder, monkeypatch):
    with tracking.pipeline_run("nightly", params.Params(), {"prefect.flow_run_id": "f"}) as parent:
        monkeypatch.setenv(tracking.PARENT, parent)
        monkeypatch.setenv(tracking.FLOW_RUN, "f")
        monkeypatch.setenv(tracking.TASK_RUN, "t")
        with tracking.open_tracker("attack", params.Params()):
            pass
        assert named("nightly")[0].info.status == "RUNNING"
    (run,) = named("attack")
    tags = run.data.tags
    assert (tags["mlflow.parentRunId"], tags["prefect.flow_run_id"], tags["prefect.task_run_id"]) == (parent, "f", "t")
    assert named("nightly")[0].info.status == "FINISHED"
    assert run.info.run_name == "nightly attack"


def test_the_parent_ends_with_the_numbers_of_all_stages_and_the_report(folder):
    (folder / "nightly.html").write_text("<html></html>")
    with tracking.pipeline_run("nightly", params.Params(), {}) as parent:
        tracking.conclude(parent, {"train.accuracy": 0.9, "train.epsilon": None}, folder / "nightly.html")
    assert named("nightly")[0].data.metrics == {"train.accuracy": 0.9}
    assert (folder / "mlartifacts" / parent / "artifacts" / "nightly.html").exists()


def test_an_edit_makes_the_tree_dirty_and_a_repro_does_not(folder):
    (folder / "dvc.lock").write_text("a\n")
    (folder / "code.py").write_text("a\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Two files")
    (folder / "dvc.lock").write_text("b\n")
    assert tracking._revision()["git.dirty"] == "false"
    (folder / "code.py").write_text("b\n")
    assert tracking._revision()["git.dirty"] == "true"


def test_a_worktree_records_in_the_main_checkout(folder, monkeypatch):
    git(folder, "worktree", "add", "-q", "--detach", str(folder / "tree"))
    monkeypatch.chdir(folder / "tree")
    tracking.main_checkout.cache_clear()
    assert tracking.main_checkout() == folder
    assert tracking.store() == f"sqlite:///{folder}/mlflow.db"


def test_what_is_configured_names_the_database_the_files_and_the_page(folder, monkeypatch):
    assert tracking.artifact_root() == f"file://{folder}/mlartifacts"
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://fedloom:se:cret@db.example.org/mlflow")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://team/mlflow")
    assert tracking.store() == "postgresql://fedloom:se:cret@db.example.org/mlflow"
    assert tracking.shown(tracking.store()) == "postgresql://fedloom:***@db.example.org/mlflow"
    assert tracking.artifact_root() == "s3://team/mlflow"
    assert tracking.ui() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org/")
    assert tracking.store() == "https://mlflow.example.org/" == tracking.shown(tracking.store())
    assert tracking.artifact_root() is None, "which the server knows"
    assert tracking.ui() == "https://mlflow.example.org"
    monkeypatch.setenv(tracking.UI, "https://seen.example.org")
    assert tracking.ui() == "https://seen.example.org"


def test_the_store_of_this_checkout_is_not_taken_for_a_configured_one(folder):
    """MLflow writes the one that it uses into the environment, which processes for other checkouts inherit."""
    with tracking.open_tracker("train", params.Params()) as tracker:
        assert tracking.run_url(tracker.run_id).endswith(f"/runs/{tracker.run_id}")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_off_shows_progress_and_records_nothing(folder, monkeypatch, capsys):
    monkeypatch.setenv("FEDLOOM_TRACKING", "off")
    with tracking.open_tracker("train", params.Params()) as tracker:
        tracker.metrics({"a": 1.0})
        tracker.artifact(folder / "missing")
        tracker.progress(1, 1, "round")
        assert tracker.run_id is None
    assert runs() == []
    assert "round 1/1" in capsys.readouterr().out


@pytest.mark.parametrize("half_way", [False, True], ids=["from the start", "half way"])
def test_a_damaged_database_costs_the_record_and_not_the_stage(folder, capsys, half_way):
    damage = b"no database" * 1000
    if not half_way:
        (folder / "mlflow.db").write_bytes(damage)
    with tracking.open_tracker("train", params.Params()) as tracker:
        assert (tracker.run_id is not None) == half_way
        (folder / "mlflow.db").write_bytes(damage)
        tracker.tags({"a": "b"})
        tracker.metrics({"a": 1.0})
        assert tracker.run_id is None
    assert capsys.readouterr().err.count("The run goes on without it") == 1


def test_the_key_is_the_name_under_which_dvc_files_the_run(folder, monkeypatch):
    """Computed while the stage runs, and equal to the folder's name in DVC's run-cache."""
    (folder / "key.py").write_text(
        "import os\nfrom pathlib import Path\nfrom tasks.tracking import dvc_key\n"
        "Path('.fedloom').mkdir(exist_ok=True)\nPath('.fedloom/key').write_text(dvc_key(os.environ['DVC_STAGE']))\n"
        "Path('out.txt').write_text('made')\n"
    )
    (folder / "p.yaml").write_text("a: {b: 1, c: 2}\n")
    stage = {"cmd": "python key.py", "deps": ["key.py"], "params": [{"p.yaml": ["a.b"]}], "outs": ["out.txt"]}
    YAML().dump({"stages": {"make": stage}}, folder / "dvc.yaml")
    environment = (
        os.environ
        | tracking.QUIET
        | {
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        }
    )
    for command in (["init", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, env=environment, check=True)
    key = (folder / ".fedloom" / "key").read_text()
    assert [path.parent.name for path in (folder / ".dvc/cache/runs").glob("*/*/*")] == [key]
    monkeypatch.setenv("DVC_STAGE", "make")
    assert tracking.stage_key("make", params.Params(), folder / "artifacts") == key


def test_outside_dvc_the_key_follows_what_the_stage_reads_and_nothing_else(folder):
    artifacts = folder / "elsewhere"
    (artifacts / "partition").mkdir(parents=True)
    (artifacts / "partition" / "x.npy").write_bytes(b"1")
    stage = {"cmd": "x", "deps": ["artifacts/partition"], "params": ["seed", "train.rounds"]}
    YAML().dump({"stages": {"train": stage}}, folder / "dvc.yaml")

    def key(**changes) -> str:
        return tracking.stage_key("train", params.build({**changes}), artifacts)

    start = key()
    assert key(train={"engine": {"workers": 3}}) == start
    assert key(train={"rounds": 31}) != start
    assert key(seed=1) != start
    (artifacts / "partition" / "x.npy").write_bytes(b"2")
    assert key() != start


def test_nested_settings_have_dotted_names():
    nested = {"train": {"uplink": [{"name": "clip", "norm": 1.0}], "early": None}, "empty": []}
    assert tracking.flatten(nested) == {
        "train.uplink.0.name": "clip",
        "train.uplink.0.norm": 1.0,
        "train.early": None,
        "empty": [],
    }
