"""The flow, run for real: a server, DVC, a git checkout and stages in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import Checkout, git, until

ALL = ["partition", "train", "aggregate", "attack", "report"]
RUN = (sys.executable, "-m", "flows.cli", "run")


@pytest.fixture
def prefect(checkout: Checkout, prefect_server: str) -> Checkout:
    """A checkout that uses the running server."""
    checkout.environment["PREFECT_API_URL"] = prefect_server
    return checkout


def pids(checkout: Checkout) -> list[int]:
    """The stage processes that were started."""
    lines = checkout.log.read_text().splitlines() if checkout.log.exists() else []
    return [int(line.split()[-1]) for line in lines]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return False
    return state != "Z"


def all_succeed(runs: list[subprocess.Popen]) -> None:
    for run in runs:
        print(run.communicate(timeout=240)[0])
    assert [run.returncode for run in runs] == [0] * len(runs)


def lock(checkout: Checkout) -> dict:
    return YAML(typ="safe").load(checkout.folder / "dvc.lock")["stages"]


def worktrees(checkout: Checkout) -> int:
    return len(git(checkout.folder, "worktree", "list").splitlines()) - 1


def test_nothing_changed_means_nothing_runs_and_no_server_is_needed(checkout):
    output = checkout.fedloom("run", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "Nothing has changed" in output
    assert checkout.ran() == []


def test_an_edit_runs_what_depends_on_it_and_dvc_agrees(prefect):
    prefect.edit("params.yaml", "messages: 4", "messages: 2")
    output = prefect.fedloom("run")
    assert prefect.ran() == ["attack", "report"]
    assert [line.split()[:2] for line in output.splitlines() if line.split()[:1] and line.split()[0] in ALL][-5:] == [
        ["partition", "unchanged"],
        ["train", "unchanged"],
        ["aggregate", "unchanged"],
        ["attack", "ran"],
        ["report", "ran"],
    ]
    assert list((prefect.folder / "reports").glob("*.html"))
    prefect.dvc("repro")
    assert prefect.ran() == []


def test_an_override_is_kept_as_an_experiment_and_leaves_the_checkout_alone(prefect):
    names = ("params.yaml", "dvc.lock", "artifacts/attack/values.json")
    before = [(prefect.folder / name).read_bytes() for name in names]
    prefect.edit("params.yaml", "rounds: 200", "rounds: 100")
    edited = (prefect.folder / "params.yaml").read_bytes()

    prefect.fedloom("run", "--set", "attack.messages=1")

    assert prefect.ran() == ["train", "aggregate", "attack", "report"]
    assert [(prefect.folder / name).read_bytes() for name in names] == [edited, *before[1:]]
    assert worktrees(prefect) == 0
    (name,) = [line.strip() for line in prefect.dvc("exp", "list", "--name-only").splitlines() if line.strip()]
    assert (prefect.folder / "reports" / f"{name}.html").exists()

    # The same change by hand finds everything in the cache, the uncommitted edit included.
    prefect.edit("params.yaml", "messages: 4", "messages: 1")
    prefect.dvc("repro")
    assert prefect.ran() == []
    assert json.loads((prefect.folder / "artifacts/attack/values.json").read_text())[1]["messages"] == 1


def test_a_refusal_is_told_in_the_words_of_the_stage(prefect):
    output = prefect.fedloom("run", "--set", "seed=13", code=1)
    assert "error: partition: params.yaml: seed = 13: brings bad luck" in output
    assert "Traceback" not in output
    assert worktrees(prefect) == 0
    assert prefect.dvc("exp", "list").strip() == ""


@pytest.mark.parametrize("change", [(), ("--set", "attack.messages=1")], ids=["in place", "in a worktree"])
def test_stopping_a_run_stops_its_stage_and_leaves_nothing(prefect, change):
    prefect.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    process = prefect.start(*RUN, *change, FEDLOOM_TEST_WAIT="train=100")
    until(lambda: pids(prefect))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(alive(pid) for pid in pids(prefect))
    assert worktrees(prefect) == 0
    assert list((prefect.folder / ".fedloom" / "worktrees").glob("*")) == []


def test_a_killed_run_is_swept_up_by_the_next(prefect):
    process = prefect.start(*RUN, "--set", "train.rounds=7", FEDLOOM_TEST_WAIT="train=100")
    until(lambda: pids(prefect))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    # Its stage ends on its own when nobody listens any more.
    until(lambda: not any(alive(pid) for pid in pids(prefect)))
    assert worktrees(prefect) == 1
    prefect.ran()

    prefect.fedloom("run", "--set", "train.rounds=7")

    assert prefect.ran() == ["train", "aggregate", "attack", "report"]
    assert worktrees(prefect) == 0


def test_two_runs_at_once_do_the_work_once(prefect):
    prefect.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    runs = [prefect.start(*RUN, FEDLOOM_TEST_WAIT="train=3") for _ in range(2)]
    all_succeed(runs)
    assert prefect.ran() == ["train", "aggregate", "attack", "report"]


def test_two_runs_with_different_overrides_keep_apart(prefect):
    runs = [prefect.start(*RUN, "--set", f"train.rounds={rounds}") for rounds in (5, 6)]
    all_succeed(runs)
    names = [line.strip() for line in prefect.dvc("exp", "list", "--name-only").splitlines() if line.strip()]
    found = set()
    for name in names:
        revision = git(prefect.folder, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}")
        found.add(YAML(typ="safe").load(git(prefect.folder, "show", f"{revision}:params.yaml"))["train"]["rounds"])
    assert found == {5, 6}


def test_data_reaches_a_worktree_and_counts_as_the_same_data(prefect):
    folder = prefect.folder / "data" / "mine"
    folder.mkdir()
    (folder / "table.csv").write_text("x,y\n1,0\n")
    prefect.dvc("repro")
    prefect.ran()
    (before,) = [dep for dep in lock(prefect)["partition"]["deps"] if dep["path"] == "data"]
    prefect.fedloom("run", "--set", "attack.messages=1")
    assert prefect.ran() == ["attack", "report"]
    # What changes in a folder of the data is seen there too.
    (folder / "table.csv").write_text("x,y\n1,0\n2,1\n")
    prefect.fedloom("run", "--set", "attack.messages=1")
    assert prefect.ran()[0] == "partition"
    prefect.dvc("repro")
    assert prefect.ran() == []
    (after,) = [dep for dep in lock(prefect)["partition"]["deps"] if dep["path"] == "data"]
    assert before["nfiles"] == after["nfiles"] == 2 and before["md5"] != after["md5"]


def test_a_flow_does_not_start_within_a_stage(prefect):
    output = prefect.fedloom("run", "--force", code=2, DVC_STAGE="train")
    assert "would wait for itself" in output


def test_a_busy_stage_is_waited_for(prefect):
    prefect.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-s", "train"],
        cwd=prefect.folder,
        env=prefect.environment | {"FEDLOOM_TEST_WAIT": "train=5"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: pids(prefect))
    prefect.fedloom("run")
    assert other.wait(60) == 0
    assert prefect.ran() == ["train", "aggregate", "attack", "report"]


def test_the_environment_of_a_stage_finds_this_python_first(tmp_path):
    from flows.process import run

    (name,) = run(["sh", "-c", "command -v python"], tmp_path)
    assert os.path.samefile(name, Path(sys.executable).parent / "python")
