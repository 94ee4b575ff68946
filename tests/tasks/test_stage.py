"""The command that all stages share: real processes, their exit codes and what they leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import errno, os, time
from tasks import artifacts
from tasks.config import Refused

def probe(params, folder, tracker):
    '''Does what the test asks for, in the middle of writing.'''
    import torch
    with artifacts.publish(folder / "probe") as draft:
        (draft / "half.txt").write_text("half")
        what = os.environ["PROBE"]
        if what == "refuse":
            raise Refused("data/mine.csv", "age", "is no number", "Mend the column")
        if what == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if what == "bug":
            {}["nothing"]
        if what == "wait":
            print("ready", flush=True)
            time.sleep(60)
        (draft / "whole.txt").write_text(f"{torch.get_num_threads()} {os.environ['DO_NOT_TRACK']} {params.seed}")
"""


@pytest.fixture
def probe(tmp_path):
    """A stage of a package of its own, run as a command in an empty folder."""
    package = tmp_path / "stages" / "probe"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "stage.py").write_text(PROBE)
    (package / "__main__.py").write_text("from probe.stage import probe\nfrom tasks.stage import main\n\nmain(probe)\n")
    work = tmp_path / "work"
    work.mkdir()
    (work / "params.yaml").write_text("seed: 7\n")
    environment = os.environ | {"PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}", "FEDLOOM_TRACKING": "off"}

    def start(what: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "probe", *arguments],
            cwd=work,
            env=environment | {"PROBE": what},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.work = work
    return start


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_stage_runs_on_one_thread_with_telemetry_off_and_publishes(probe):
    assert finish(probe("work")) == (0, "")
    assert (probe.work / "artifacts/probe/whole.txt").read_text() == "1 true 7"


def test_help_says_what_the_stage_does_and_how_dvc_runs_it(probe):
    process = probe("work", "--help")
    output, _ = process.communicate(timeout=60)
    assert "Does what the test asks for" in output and "dvc repro probe" in output and "--artifacts" in output


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("refuse", "error: probe: data/mine.csv = 'age': is no number. Mend the column\n"),
        ("full", "No space left on device"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(probe, what, said):
    code, errors = finish(probe(what))
    assert code == 2
    assert said in errors and "Traceback" not in errors
    assert list((probe.work / "artifacts").iterdir()) == []


def test_a_fault_in_the_code_keeps_its_traceback(probe):
    code, errors = finish(probe("bug"))
    assert code == 1 and "KeyError: 'nothing'" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_a_stage_closes_what_it_has_open(probe, number):
    process = probe("wait")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, errors = finish(process)
    assert code == 130 and "stopped before the end" in errors and "Traceback" not in errors
    assert list((probe.work / "artifacts").iterdir()) == []


def test_bad_parameters_are_refused_before_the_stage_starts(probe):
    (probe.work / "params.yaml").write_text("sede: 7\n")
    code, errors = finish(probe("work"))
    assert code == 2 and "sede: unknown field; did you mean `seed`?" in errors
    assert not (probe.work / "artifacts").exists()
    code, errors = finish(probe("work", "--params", "none.yaml"))
    assert code == 2 and "none.yaml: does not exist" in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(probe):
    (probe.work / "artifacts").mkdir(mode=0o500)
    code, errors = finish(probe("work"))
    assert code == 2 and "Permission denied" in errors and "artifacts" in errors
