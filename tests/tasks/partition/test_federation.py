"""The published folder is read back as it was written, and a damaged one is refused by the name of the file."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts import Damaged
from tasks.partition.federation import Federation

SECTION = {"dataset": {"name": "wine"}, "clients": 5, "split": {"name": "dirichlet", "alpha": 1.0}}


@pytest.fixture
def folder(run) -> Path:
    return run(SECTION).path


def test_a_client_trains_and_validates_on_its_own_samples_and_on_no_others(run):
    federation = run(SECTION | {"validation_fraction": 0.3})
    owned = [np.concatenate([federation.train(c), federation.validation(c)]) for c in range(federation.clients)]
    assert np.array_equal(np.sort(np.concatenate(owned)), np.arange(federation.meta.samples))
    assert [len(federation.train(c)) for c in range(5)] == federation.sizes.tolist()
    assert [len(part) for part in owned] == federation.owned.tolist()
    assert federation.train(0).dtype == np.int64 and federation.train(0).flags.writeable


def test_the_samples_are_mapped_and_no_reader_can_change_the_file(folder):
    federation, before = Federation.open(folder), (folder / "x.npy").read_bytes()
    assert isinstance(federation.x, np.memmap) and federation.x.mode in ("r", "c")
    if federation.x.flags.writeable:
        federation.x[:] = 0.0
        federation.x.flush()
    assert (folder / "x.npy").read_bytes() == before


@pytest.mark.parametrize("name", ["x", "y", "test_x", "test_y", "indices", "offsets", "train_sizes"])
def test_a_missing_or_truncated_array_is_refused(folder, name):
    path = folder / f"{name}.npy"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=f"{name}.npy: is not a complete .npy array"):
            Federation.open(folder)
    path.unlink()
    with pytest.raises(Damaged, match=f"{name}.npy: does not exist"):
        Federation.open(folder)


def test_arrays_that_do_not_fit_one_another_are_refused(folder):
    def damage(name: str, change, problem: str) -> None:
        path = folder / f"{name}.npy"
        whole = np.load(path)
        np.save(path, change(whole.copy()))
        with pytest.raises(Damaged, match=problem):
            Federation.open(folder)
        np.save(path, whole)
        Federation.open(folder)

    def put(at, value):
        def change(array):
            array[at] = value
            return array

        return change

    damage("x", lambda x: x[:, :-1], r"holds float32 \[\d+, 12\], but meta.json says .*\[\d+, 13\]")
    damage("x", lambda x: x.astype(np.float64), "holds float64")
    damage("y", lambda y: y[1:], r"holds int64")
    damage("y", put(3, 3), r"holds a label outside 0\.\.2")
    damage("test_y", put(0, -1), r"holds a label outside 0\.\.2")
    damage("indices", put(0, 10**6), "does not name each")
    damage("indices", lambda indices: np.where(indices == 7, 8, indices), "does not name each")
    damage("offsets", put(-1, 1), "does not rise from 0")
    damage("offsets", lambda offsets: offsets[[0, 2, 1, 3, 4, 5]], "does not rise from 0")
    damage("train_sizes", lambda sizes: sizes + 100, "more training samples than it owns")
    damage("train_sizes", put(0, -1), "more training samples than it owns")


def test_a_damaged_description_is_refused_by_its_field(folder):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"classes": "three"}))
    with pytest.raises(Damaged, match=r"meta.json: .*classes"):
        Federation.open(folder)
    path.write_text(path.read_text()[:30])
    with pytest.raises(Damaged, match=r"meta.json"):
        Federation.open(folder)
    path.unlink()
    with pytest.raises(Damaged, match=r"meta.json: does not exist"):
        Federation.open(folder)


def test_the_refusal_says_which_stage_mends_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Damaged, match="dvc repro -f -s partition"):
        Federation.open(Path("artifacts/partition"))
