"""Artefacts are whole or not there, and what cannot be read or written is refused by name."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import artifacts
from tasks.config import Refused

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
from tasks import artifacts
folder, number = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    with artifacts.publish(folder) as draft:
        for name in "abc":
            (draft / name).write_text(str(number) * 20000)
"""


def test_a_reader_never_sees_half_a_folder_whenever_the_writer_is_killed(tmp_path):
    folder = tmp_path / "out"
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with artifacts.publish(folder) as draft:  # sweeps up, and puts back what was out of place
            texts = {(folder / name).read_text() for name in "abc"} if folder.exists() else {""}
            assert len(texts) == 1
            for name in "abc":
                (draft / name).write_text("done")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_block_leaves_the_old_folder(tmp_path):
    with artifacts.publish(tmp_path / "out") as draft:
        (draft / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), artifacts.publish(tmp_path / "out") as draft:
        (draft / "a").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@given(st.dictionaries(st.text("abc/.", min_size=1, max_size=6), st.integers(0, 4), min_size=1, max_size=6))
def test_a_tree_comes_back_with_its_order_dtypes_and_bits(tmp_path_factory, shape):
    dtypes = (torch.float32, torch.int64, torch.uint8, torch.float64, torch.bool)
    tree = {name: torch.arange(size).to(dtypes[i % 5]) for i, (name, size) in enumerate(shape.items())}
    path = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    artifacts.write_tree(path, tree)
    back = artifacts.read_tree(path)
    assert list(back) == list(tree)
    assert all(torch.equal(back[name], tree[name]) and back[name].dtype == tree[name].dtype for name in tree)


@pytest.mark.parametrize("cut", [0, 3, 60, -1])
def test_truncated_files_are_refused_with_the_stage_to_run(tmp_path, monkeypatch, cut):
    monkeypatch.chdir(tmp_path)
    folder = artifacts.ROOT / "train"
    artifacts.write_tree(folder / "t.safetensors", {"x": torch.ones(100)})
    np.save(folder / "a.npy", np.ones(100))
    artifacts.write_json(folder / "j.json", {"x": list(range(40))})
    artifacts.write_lines(folder / "l.jsonl", [{"x": i} for i in range(20)])
    readers = {
        "t.safetensors": artifacts.read_tree,
        "a.npy": artifacts.read_array,
        "j.json": artifacts.read_json,
        "l.jsonl": artifacts.read_lines,
    }
    for name, read in readers.items():
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: cut if cut >= 0 else len(whole) - 3])
        if name == "l.jsonl" and cut == 0:
            continue  # an empty log is a log of nothing
        with pytest.raises(artifacts.Damaged, match=rf"train/{name}.*dvc repro -f -s train"):
            read(path)
        path.unlink()
        with pytest.raises(artifacts.Damaged, match=r"does not exist\. Run train again"):
            read(path)


def test_a_place_that_cannot_be_written_is_refused_and_what_was_there_stays(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for attempt in (
        lambda: artifacts.write_json(tmp_path / "file" / "x.json", {}),
        lambda: artifacts.write_tree(tmp_path / "file" / "x.safetensors", {"a": torch.ones(1)}),
        lambda: artifacts.publish(tmp_path / "file" / "x").__enter__(),
    ):
        with pytest.raises(Refused, match="cannot be written"):
            attempt()
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_is_refused_elsewhere_is_refused_here_in_the_same_words(tmp_path):
    for error in (Refused("here", 3, "must be 2", "Set it"), artifacts.Damaged(tmp_path / "train" / "x", "is empty")):
        arrived = pickle.loads(pickle.dumps(error))
        assert type(arrived) is type(error) and str(arrived) == str(error) and arrived.mend == error.mend


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(tmp_path):
    os.symlink("/dev/full", tmp_path / f".x.json.{os.getpid()}.partial")
    with pytest.raises(Refused, match=r"x.json: cannot be written \(No space left on device\)"):
        artifacts.write_json(tmp_path / "x.json", {"a": 1})


def test_tensors_on_one_memory_are_written_each_for_itself(tmp_path):
    value = torch.arange(6.0)
    artifacts.write_tree(tmp_path / "t", {"a": value, "b": value, "c": value[2:]})
    read = artifacts.read_tree(tmp_path / "t")
    assert read["a"].equal(value) and read["b"].equal(value) and read["c"].equal(value[2:])
