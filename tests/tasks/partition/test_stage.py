"""The stage as it is run: what it publishes is a pure function of its input, and it fits in memory."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.config import Refused
from tasks.partition import stage

ROOT = Path(__file__).resolve().parents[3]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_parameters_publish_the_same_bytes_and_another_seed_others(run):
    section = {"clients": 20, "skew": {"name": "noise"}, "limit": 600}
    first, second = digests(run(section, folder="a").path), digests(run(section, folder="b").path)
    assert first == second
    other = digests(run(section, seed=1, folder="c").path)
    assert {name for name in first if first[name] == other[name]} <= {"meta.json", "offsets.npy", "train_sizes.npy"}


def test_small_chunks_publish_the_same_bytes(run, monkeypatch):
    section = {"clients": 20, "skew": {"name": "noise"}, "dataset": {"name": "breast_cancer"}}
    whole = digests(run(section, folder="a").path)
    monkeypatch.setattr(stage, "CHUNK", 1000)
    assert digests(run(section, folder="b").path) == whole


def test_the_number_of_clients_changes_the_split_but_not_the_test_set(run):
    few, many = run({"clients": 10}, folder="a"), run({"clients": 50}, folder="b")
    assert np.array_equal(few.test_x, many.test_x) and np.array_equal(few.x, many.x)


def test_a_limit_takes_a_part_of_both_sets_and_keeps_samples_with_their_labels(run):
    whole, part = run({"clients": 10}, folder="a"), run({"clients": 10, "limit": 100, "test_limit": 30}, folder="b")
    assert part.meta.samples == len(part.x) == 100 and part.meta.test_samples == 30
    known = {whole.x[i].tobytes(): whole.y[i] for i in range(whole.meta.samples)}
    assert all(known[part.x[i].tobytes()] == part.y[i] for i in range(100))


def test_public_samples_are_taken_out_of_the_test_set_and_no_client_owns_one(run):
    whole, part = run({"clients": 10}, folder="a"), run({"clients": 10, "public": 60}, folder="b")
    assert np.array_equal(whole.x, part.x) and np.array_equal(whole.indices, part.indices)
    assert len(part.public_y) == 60 and len(part.test_y) == part.meta.test_samples == len(whole.test_y) - 60
    assert len(whole.public_y) == 0
    both = zip([*part.test_x, *part.public_x], [*part.test_y, *part.public_y], strict=True)
    pairs = sorted((x.tobytes(), int(y)) for x, y in both)
    assert pairs == sorted((x.tobytes(), int(y)) for x, y in zip(whole.test_x, whole.test_y, strict=True))
    with pytest.raises(Refused, match=r"partition\.public = 10000: leaves none"):
        run({"clients": 10, "public": 10_000})


def test_public_samples_have_no_group_of_those_that_are_tested_on(run, tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("\n".join(["age,town,bought", *(f"{20 + i},{'ab'[i % 2]},{i % 3 > 0}" for i in range(90))]))
    section = {"dataset": {"name": "table", "path": str(path), "target": "bought", "group": "town"}, "clients": 3}
    section["dataset"]["keep"] = ["town"]
    found = run(section | {"public": 5})
    assert len(found.test_groups) == len(found.test_y) == found.meta.test_samples


def test_a_skew_changes_the_clients_samples_and_leaves_the_test_set_alone(run):
    plain = run({"clients": 10}, folder="a")
    turned = run({"clients": 10, "skew": {"name": "rotation", "angles": [0, 90]}}, folder="b")
    assert np.array_equal(plain.test_x, turned.test_x)
    kept = [
        all(np.array_equal(plain.x[i], turned.x[i]) for i in np.concatenate([turned.train(c), turned.validation(c)]))
        for c in range(10)
    ]
    assert sum(kept) == 5
    c = kept.index(False)
    for i in turned.train(c):
        assert np.allclose(turned.x[i], np.rot90(plain.x[i], axes=(1, 2)), atol=1e-5)


def test_groups_are_published_for_both_sets_with_their_names(run, tmp_path):
    rng = np.random.default_rng(0)
    site = np.array(["north", "south", "south"] * 20)
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(60, 2)), y=(site == "north").astype(int), site=site)
    dataset = {"name": "npz", "path": tmp_path / "own.npz", "keep": ["site"], "group": "site"}
    federation = run({"dataset": dataset, "clients": 2, "split": {"name": "column", "by": "site"}})
    assert federation.meta.groups.values == ("north", "south") and federation.meta.dataset == "own"
    # Label 1 is the north: the groups follow their samples.
    assert np.array_equal(federation.groups == 0, federation.y == 1)
    assert np.array_equal(federation.test_groups == 0, federation.test_y == 1)
    assert {len(np.unique(federation.groups[federation.train(c)])) for c in range(2)} == {1}


def test_synthetic_clients_become_the_clients_of_the_federation(run):
    dataset = {"name": "synthetic", "sources": 12, "size_deviation": 0.5}
    federation = run({"dataset": dataset, "clients": 12, "split": {"name": "column", "by": "client"}})
    assert federation.clients == 12 and federation.owned.min() >= 40
    assert json.loads((federation.path / "card.json").read_text())["moved_samples"] == 0


def test_the_metrics_are_those_of_the_federation(run, tmp_path):
    federation = run({"clients": 30})
    metrics = json.loads((tmp_path / "run" / "metrics" / "partition.json").read_text())
    owned = federation.owned
    assert metrics["samples"] == owned.sum() and metrics["largest_client"] == owned.max()
    assert metrics["smallest_client"] == owned.min() and metrics["median_client"] == np.median(owned)


def test_what_is_refused_leaves_the_last_partition_as_it_was(run, tmp_path, monkeypatch):
    before = digests(run({"clients": 10}).path)
    with pytest.raises(Refused, match=r"params.yaml: partition.min_size"):
        run({"clients": 1000})
    with pytest.raises(Refused, match=r"params.yaml: partition.skew.name"):
        run({"dataset": {"name": "wine"}, "clients": 5, "skew": {"name": "domain"}})

    def full(path, dtype, shape, chunks):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "write_chunks", full)
    with pytest.raises(Refused, match="No space left on device"):
        run({"clients": 20})
    folder = tmp_path / "run" / "artifacts"
    assert digests(folder / "partition") == before
    assert [path.name for path in folder.iterdir()] == ["partition"]


def test_a_picture_that_breaks_off_in_the_middle_is_named_and_nothing_is_published(run, tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (9, 9), i).save(tmp_path / "own" / name / f"{i}.png")
    picture = tmp_path / "own" / "b" / "5.png"
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(Refused, match=r"own/b/5.png: is not a picture"):
        run({"dataset": {"name": "image_folder", "path": tmp_path / "own"}, "clients": 2})
    assert list((tmp_path / "run" / "artifacts").iterdir()) == []


MILLION = """
import resource
from pathlib import Path
from types import SimpleNamespace
from tasks.partition.federation import Federation
from tasks.partition.settings import PartitionSettings
from tasks.partition.stage import partition
from tasks.tracking import Tracker
section = {"dataset": {"name": "npz", "path": "m.npz"}, "clients": 1_000_000, "min_size": 1}
params = SimpleNamespace(seed=0, partition=PartitionSettings.model_validate(section))
partition(params, Path("artifacts"), Tracker("partition"))
federation = Federation.open("artifacts/partition")
print(federation.clients, federation.sizes.min(), federation.train(999_999)[0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_million_clients_fit_in_two_gibibytes(tmp_path):
    y = np.arange(1_250_000) % 10
    np.savez(tmp_path / "m.npz", x=np.arange(2_500_000, dtype=np.float32).reshape(-1, 2), y=y)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MILLION], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    clients, memory = done.stdout.strip().splitlines()[-2:]
    assert clients.startswith("1000000 1 ")
    assert int(memory) * 1024 < 2 * 2**30
