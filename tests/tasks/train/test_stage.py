"""The train stage as a command: killed at any moment it goes on to the same bytes, and refuses what it cannot read."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from tasks import artifacts, tracking
from tasks.config import Refused
from tasks.params import Params, build
from tasks.tracking import Tracker
from tasks.train import stage
from tasks.train.checkpoints import Checkpoint, Checkpoints, claimed

ROOT = Path(__file__).resolve().parents[3]
PARAMS = {
    "partition": {"dataset": {"name": "digits"}, "clients": 30},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {
        "rounds": 40,
        "cohort": 6,
        "algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": 8},
        "uplink": [{"name": "topk", "density": 0.2}],
        "engine": {"workers": 0, "checkpoint_every": 3},
        "transcript": {"rounds": ["first", 20, "last"], "clients": 2},
    },
}


def start(stage: str, folder: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "FEDLOOM_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tasks.{stage}"]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(stage: str, folder: Path) -> subprocess.CompletedProcess:
    process = start(stage, folder)
    out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory) -> Path:
    """A folder with parameters and a finished partition stage."""
    folder = tmp_path_factory.mktemp("run")
    build(PARAMS)
    YAML().dump(PARAMS, folder / "params.yaml")
    done = finish("partition", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(partitioned) -> dict[str, bytes]:
    done = finish("train", partitioned)
    assert done.returncode == 0, done.stderr
    assert not list((partitioned / ".fedloom" / "checkpoints").iterdir())
    return contents(partitioned / "artifacts" / "train")


def results(partitioned: Path, folder: Path, killed: int | None = None, **engine: object) -> dict[str, bytes]:
    """What a run leaves; it may be killed at a random moment after its first checkpoint, and started again."""
    shutil.copytree(partitioned / "artifacts" / "partition", folder / "artifacts" / "partition")
    train = PARAMS["train"] | {"engine": PARAMS["train"]["engine"] | engine}
    YAML().dump(PARAMS | {"train": train}, folder / "params.yaml")
    if killed is not None:
        process, checkpoints = start("train", folder), folder / ".fedloom" / "checkpoints"
        deadline = time.monotonic() + 60
        while not list(checkpoints.glob("*/round-*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.Random(killed).random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = finish("train", folder)
    assert done.returncode == 0, done.stderr
    return contents(folder / "artifacts" / "train")


@pytest.mark.parametrize(("attempt", "workers"), [(0, 0), (1, 0), (2, 2)])
def test_killed_at_random_it_goes_on_to_the_same_bytes(partitioned, undisturbed, tmp_path, attempt, workers):
    """Model, history, uploads and transcript, through memories and residuals that outlive the process; with workers,
    those of the run without."""
    assert results(partitioned, tmp_path, killed=attempt, workers=workers) == undisturbed


def test_so_does_a_compiled_run(partitioned, tmp_path):
    whole = results(partitioned, tmp_path / "whole", compile=True, stack=6)
    assert json.loads(whole["plan.json"])["compile"] is True
    assert results(partitioned, tmp_path / "killed", killed=3, compile=True, stack=6) == whole


def test_it_says_where_it_goes_on(partitioned, tmp_path):
    shutil.copytree(partitioned / "artifacts" / "partition", tmp_path / "artifacts" / "partition")
    shutil.copy(partitioned / "params.yaml", tmp_path)
    process = start("train", tmp_path)
    while not list((tmp_path / ".fedloom").glob("checkpoints/*/round-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("it had finished before it could be told to stop")
    assert "nothing was published" in error
    assert not (tmp_path / "artifacts" / "train").exists()
    assert "goes on after round" in finish("train", tmp_path).stdout


def test_a_truncated_partition_is_refused_by_name(partitioned, tmp_path):
    shutil.copytree(partitioned / "artifacts" / "partition", tmp_path / "artifacts" / "partition")
    shutil.copy(partitioned / "params.yaml", tmp_path)
    x = tmp_path / "artifacts" / "partition" / "x.npy"
    x.write_bytes(x.read_bytes()[:1000])
    done = finish("train", tmp_path)
    assert done.returncode == 2
    assert "x.npy" in done.stderr
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_half_written_checkpoint_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(artifacts.Damaged, match="Remove it"), claimed(tmp_path / "key") as checkpoints:
        folder = checkpoints.folder / "round-000003"
        folder.mkdir()
        (folder / "state.safetensors").write_bytes(b"\x10")
        checkpoints.newest()


def test_a_checkpoint_adds_its_new_rows_to_the_logs_and_a_killed_one_leaves_no_trace(tmp_path, monkeypatch):
    def checkpoint(rounds: int) -> Checkpoint:
        history, timings = ([{"round": i, name: i / 7} for i in range(rounds)] for name in ("loss", "total"))
        return Checkpoint({"w": torch.ones(2)}, {"u": torch.ones(1)}, history, timings, [], {"stack": 4})

    def publish(_):
        raise KeyboardInterrupt

    first = Checkpoints(tmp_path)
    first.save(2, checkpoint(2))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(artifacts, "publish", publish)
        first.save(4, checkpoint(4))
    assert len(artifacts.read_lines(tmp_path / "history.jsonl")) == 4
    for name in ("timings", "diagnostics"):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"round": 4, "to')
    again = Checkpoints(tmp_path)
    found = again.newest()
    assert (found.history, found.timings, found.layout) == (*checkpoint(2)[2:4], {"stack": 4})
    again.save(3, checkpoint(3))
    assert Checkpoints(tmp_path).newest()[2:] == checkpoint(3)[2:]
    for name, rows in zip(("history", "timings"), checkpoint(3)[2:4], strict=True):
        assert artifacts.read_lines(tmp_path / f"{name}.jsonl") == rows
    assert {path.name for path in (tmp_path / "round-000003").iterdir()} == {
        "run.json", "state.safetensors", "uploads.safetensors"
    }  # fmt: skip


def test_a_log_that_is_shorter_than_its_checkpoint_is_refused(tmp_path):
    rows = [{"round": 1}]
    Checkpoints(tmp_path).save(1, Checkpoint({"w": torch.ones(1)}, {"u": torch.ones(1)}, rows, rows, [], {}))
    (tmp_path / "timings.jsonl").write_text("")
    with pytest.raises(artifacts.Damaged, match=r"timings.jsonl: is shorter"):
        Checkpoints(tmp_path).newest()


class BrokenOff(Tracker):
    """Interrupts the stage after a round, before its checkpoint is written."""

    def __init__(self, round_: int):
        super().__init__("train")
        self.round = round_

    def progress(self, done, *_, **__):
        if done == self.round:
            raise KeyboardInterrupt


def begun(partitioned: Path, folder: Path, round_: int, **train) -> Params:
    """The parameters of a run in ``folder`` that was broken off after a round."""
    shutil.copytree(partitioned / "artifacts" / "partition", folder / "artifacts" / "partition")
    params = build(PARAMS | {"train": PARAMS["train"] | train})
    with pytest.raises(KeyboardInterrupt):
        stage.train(params, folder / "artifacts", BrokenOff(round_))
    return params


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """An empty folder in which the stage runs in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "main_checkout", lambda: tmp_path)
    monkeypatch.setattr(stage, "main_checkout", lambda: tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / stage.COMPILED))
    return tmp_path


def test_it_does_not_go_on_in_another_layout(partitioned, checkout, monkeypatch):
    """As it would where a compiler is missing: the model would be that of neither."""
    monkeypatch.chdir(checkout)
    params = begun(partitioned, checkout, 5)
    resolve = stage.resolve
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(stage, "resolve", lambda *given: resolve(*given)._replace(compile=True))
        with pytest.raises(Refused, match="would change compile from False to True in mid-run"):
            stage.train(params, checkout / "artifacts", Tracker("train"))
    assert list((checkout / ".fedloom" / "checkpoints").glob("*/round-000003"))


def test_the_second_round_of_a_resumed_process_is_profiled(partitioned, checkout):
    engine = PARAMS["train"]["engine"] | {"profile": True}
    params = begun(partitioned, checkout, 5, rounds=6, engine=engine, transcript={"clients": 1})
    stage.train(params, checkout / "artifacts", Tracker("train"))
    traces = {path.name for path in (checkout / ".fedloom" / "profiles").iterdir()}
    assert traces == {"train-round-2.json", "train-round-5.json"}


def test_a_resumed_run_stops_as_early_as_one_that_was_not_broken_off(partitioned, checkout):
    engine, patience = PARAMS["train"]["engine"] | {"checkpoint_every": 1}, {"patience": 4, "min_delta": 0.5}
    params = begun(partitioned, checkout, 4, engine=engine, early_stop=patience, transcript={"clients": 1})
    stage.train(params, checkout / "artifacts", Tracker("train"))
    resumed = (checkout / "artifacts" / "train" / "history.jsonl").read_bytes()
    stage.train(params, checkout / "artifacts", Tracker("train"))
    assert (checkout / "artifacts" / "train" / "history.jsonl").read_bytes() == resumed
    assert 4 < len(resumed.splitlines()) < PARAMS["train"]["rounds"]


def test_two_runs_of_the_same_work_take_folders_of_their_own(tmp_path):
    with claimed(tmp_path / "key") as first, claimed(tmp_path / "key") as second:
        assert first.folder != second.folder
    with claimed(tmp_path / "key") as again:
        assert again.folder == first.folder


def test_early_stop_ends_when_the_validation_loss_no_longer_falls(partitioned, tmp_path):
    params = json.loads(json.dumps(PARAMS))
    params["train"] |= {"early_stop": {"patience": 2, "min_delta": 0.5}}
    shutil.copytree(partitioned / "artifacts" / "partition", tmp_path / "artifacts" / "partition")
    YAML().dump(params, tmp_path / "params.yaml")
    done = finish("train", tmp_path)
    assert done.returncode == 0, done.stderr
    history = artifacts.read_lines(tmp_path / "artifacts" / "train" / "history.jsonl")
    losses = [row["validation_loss"] for row in history]
    best, stale, ends = float("inf"), 0, None
    for i, loss in enumerate(losses):
        best, stale = (loss, 0) if loss < best - 0.5 else (best, stale + 1)
        if stale == 2:
            ends = i
            break
    assert ends == len(losses) - 1 < PARAMS["train"]["rounds"] - 1
    uploads = artifacts.read_tree(tmp_path / "artifacts" / "train" / "uploads.safetensors")
    assert len(uploads["clients"]) == PARAMS["train"]["cohort"]
