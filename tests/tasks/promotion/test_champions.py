"""The succession on a real registry: who holds the alias, what is told, and what a run can start from."""

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from tasks import params as schema
from tasks import tracking
from tasks.aggregate.register import register
from tasks.artifacts import read_tree, write_tree
from tasks.models import build
from tasks.models.start import File
from tasks.partition.federation import Federation
from tasks.partition.stage import partition
from tasks.promotion.champions import figures, standing, succession
from tasks.promotion.rule import Promotion

NAME = "fedloom-wine-logistic"
WINE = {"partition": {"dataset": {"name": "wine"}, "clients": 5}, "model": {"name": "logistic"}, "train": {"cohort": 5}}
CACHES = (tracking.main_checkout, tracking._mlflow, tracking._experiment)


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wine") / "artifacts"
    partition(schema.build(WINE), folder, tracking.Tracker("partition"))
    return folder


@pytest.fixture
def checkout(tmp_path: Path, partitioned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a registry of its own and a finished partition stage."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    for name in ("FEDLOOM_TRACKING", "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(partitioned, tmp_path / "artifacts")
    for cached in CACHES:
        cached.cache_clear()
    yield tmp_path
    for cached in CACHES:
        cached.cache_clear()


def released(checkout: Path, scale: float, settings: dict = WINE) -> tuple[schema.Params, dict[str, float]]:
    """Registers the model with fresh weights times ``scale``, as the stages would; gives its numbers."""
    params = schema.build(settings)
    federation = Federation.open(checkout / "artifacts" / "partition")
    network = build(params.model, federation.meta.shape, federation.meta.classes, 0)
    path = checkout / "artifacts" / "aggregate" / "model.safetensors"
    # Towards the mean of each class: a classifier that is right for most samples, or for few where scale is negative.
    means = torch.stack([torch.from_numpy(federation.x[federation.y == k]).mean(0) for k in range(3)])
    write_tree(path, {name: scale * means if v.dim() > 1 else 0 * v for name, v in network.parameters.items()})
    tracking.client()
    with mlflow.start_run(experiment_id=tracking._experiment()):
        register(params, federation.meta, path, {"accuracy": 0.5})
    found = figures(NAME, newest(), federation)
    return params, {f"aggregate.{name}": value for name, value in found.items()}


def newest() -> str:
    return str(tracking.client().get_registered_model(NAME).aliases["candidate"])


def aliases() -> dict[str, str]:
    return {alias: str(version) for alias, version in tracking.client().get_registered_model(NAME).aliases.items()}


def test_champions_are_succeeded_by_better_models_alone(checkout):
    artifacts = checkout / "artifacts"
    assert standing(NAME) is None
    params, bad = released(checkout, -1.0)
    first = succession(Promotion(), params, artifacts, bad, {"fedloom.inputs": "x"})
    assert first.promoted and aliases() == {"candidate": "1", "champion": "1"}
    assert tracking.client().get_model_version(NAME, "1").tags["fedloom.inputs"] == "x"
    assert succession(Promotion(), params, artifacts, bad, {}) is None, "it is the champion already"

    params, good = released(checkout, 1.0)
    assert good["aggregate.accuracy"] > 0.8
    assert bad["aggregate.accuracy"] < 0.3
    assert succession(None, params, artifacts, good, {}) is None and aliases()["champion"] == "1"
    second = succession(Promotion(margin=0.1), params, artifacts, good, {})
    assert second.promoted and aliases() == {"candidate": "2", "champion": "2"}
    # The tag says 0.5; it was tested again.
    assert (second.new, second.standing) == (good["aggregate.accuracy"], bad["aggregate.accuracy"])

    params, bad = released(checkout, -2.0)
    third = succession(Promotion(), params, artifacts, bad, {})
    assert not third.promoted and aliases() == {"candidate": "3", "champion": "2"}
    assert tracking.client().get_model_version(NAME, "3").tags["fedloom.promotion"] == third.sentence

    # A run can start from it: the same weights, under the name of their content.
    found = standing(NAME)
    kept = checkout / found.path
    assert found.version == "2" and hashlib.sha256(kept.read_bytes()).hexdigest() == found.sha256 == kept.stem
    start = File(path=found.path, sha256=found.sha256, head=True)
    network = build(params.model.model_copy(update={"start": start}), (13,), 3, 7)
    assert all(torch.equal(network.parameters[name], value) for name, value in read_tree(kept).items())


def test_a_champion_of_other_features_is_not_compared_and_stays(checkout):
    params, numbers = released(checkout, -1.0)
    succession(Promotion(), params, checkout / "artifacts", numbers, {})
    federation = Federation.open(checkout / "artifacts" / "partition")
    meta = federation.meta.model_copy(update={"features": (*federation.meta.features[:-1], "new")})
    assert "whose features are others" in figures(NAME, "1", replace(federation, meta=meta))
    meta = federation.meta.model_copy(update={"class_names": ("a", "b", "c")})
    assert "whose class names are others" in figures(NAME, "1", replace(federation, meta=meta))


def test_where_nothing_is_recorded_there_is_no_champion(checkout, monkeypatch):
    monkeypatch.setenv("FEDLOOM_TRACKING", "off")
    assert standing(NAME) is None
    assert not (checkout / "mlflow.db").exists()
