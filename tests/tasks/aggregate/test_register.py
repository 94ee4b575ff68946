import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from tasks import params as schema
from tasks.aggregate.register import pinned, register
from tasks.artifacts import read_tree, sha256, write_tree
from tasks.models import build
from tasks.partition.federation import Meta
from tasks.tracking import quiet

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, classes, width=3):
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, classes)
    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))
"""

LOAD = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
x = np.array(json.loads(sys.argv[3]), np.float32)
import tasks
print(json.dumps({"y": model.predict(x).tolist(), "code": tasks.__file__,
    "parameters": sum(p.numel() for p in model.get_raw_model().parameters())}))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    quiet()
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.create_experiment("made", artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment("made")
    yield uri
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


@pytest.fixture
def meta():
    return Meta(
        dataset="made", kind="table", shape=(4,), classes=3, class_names=("a", "b", "c"), range=None,
        samples=9, test_samples=9, clients=3,
    )  # fmt: skip


def released(settings, meta, tmp_path, accuracy=0.5):
    """Registers a model with weights of the seed and gives the weights back."""
    import mlflow

    network = build(settings.model, meta.shape, meta.classes, settings.seed)
    path = tmp_path / "model.safetensors"
    write_tree(path, network.parameters)
    with mlflow.start_run():
        register(settings, meta, path, {"accuracy": accuracy, "loss": None})
    return network, read_tree(path)


def load_elsewhere(store, uri, x, tmp_path):
    """The model's answers in a fresh process, outside the project."""
    command = [sys.executable, "-c", LOAD, store, uri, json.dumps(x.tolist())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_own_code_and_weights_travel_and_give_the_same_answers_in_a_fresh_process(
    store, meta, tmp_path, monkeypatch, capsys
):
    project = tmp_path / "project"
    project.mkdir()
    (project / "own_network.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(str(project))
    model = {"name": "custom", "path": "own_network:Own", "options": {"width": 5}}
    network, weights = released(schema.build({"model": model}), meta, tmp_path)
    assert "models:/fedloom-made-custom/1" in capsys.readouterr().out
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    (project / "own_network.py").unlink()
    found = load_elsewhere(store, "models:/fedloom-made-custom@candidate", x, tmp_path)
    expected = network.apply(weights, torch.from_numpy(x)).softmax(-1).detach().numpy()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)
    assert found["parameters"] == sum(value.numel() for value in weights.values())
    assert "mlartifacts" in found["code"]


def test_a_registered_model_holds_nothing_pickled_and_pins_what_it_needs(store, meta, tmp_path):
    import mlflow

    released(schema.build({"model": {"name": "mlp", "hidden": [3]}}), meta, tmp_path)
    folder = mlflow.artifacts.download_artifacts("models:/fedloom-made-mlp@candidate", dst_path=str(tmp_path / "copy"))
    names = {path.suffix for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert not names & {".pkl", ".pickle", ".pt", ".pth", ".bin"}
    requirements = (tmp_path / "copy" / "requirements.txt").read_text().split()
    assert f"torch=={pinned('torch')}" in requirements
    assert all("==" in line for line in requirements)
    signature = mlflow.models.get_model_info(folder).signature
    assert signature.inputs.inputs[0].shape == (-1, 4)
    assert signature.outputs.inputs[0].shape == (-1, 3)


def test_the_newest_version_is_the_candidate_and_none_a_champion_of_itself(store, meta, tmp_path):
    import mlflow

    client = mlflow.MlflowClient()
    settings = schema.build({"model": {"name": "logistic"}, "aggregate": {"registry": {"model": "mine"}}})
    for version in ("1", "2"):
        released(settings, meta, tmp_path)
        assert {k: str(v) for k, v in client.get_registered_model("mine").aliases.items()} == {"candidate": version}
        tags = client.get_model_version("mine", version).tags
        assert tags["fedloom.weights"] == sha256(tmp_path / "model.safetensors")
        assert float(tags["accuracy"]) == 0.5


def test_a_registry_that_fails_costs_only_the_entry(store, meta, tmp_path, monkeypatch, capsys):
    import mlflow

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(mlflow, "register_model", full)
    released(schema.build({"model": {"name": "logistic"}}), meta, tmp_path)
    assert "no space left" in capsys.readouterr().err
