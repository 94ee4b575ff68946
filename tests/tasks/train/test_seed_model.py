"""What the server trains on samples of its own, before the first round."""

import numpy as np
import pytest
import torch

from tasks import models
from tasks.artifacts import read_lines
from tasks.models.architectures import Logistic
from tasks.params import ParamsRefused, build
from tasks.partition.federation import Federation
from tasks.partition.stage import partition
from tasks.tracking import Tracker
from tasks.train.seed_model import NoSeedModel, PublicSeedModel
from tasks.train.stage import train

DOCUMENT = {
    "partition": {"clients": 10, "public": 100},
    "model": {"name": "logistic"},
    "train": {"rounds": 1, "cohort": 2, "algorithm": {"name": "fedavg", "lr": 1e-6}, "engine": {"workers": 0}},
    "attack": {"suite": []},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Federation:
    folder = tmp_path_factory.mktemp("start") / "artifacts"
    partition(build(DOCUMENT), folder, Tracker("partition"))
    return Federation.open(folder / "partition")


def test_a_seed_model_is_sgd_on_public_samples_alone(data):
    """With batches of all of them, against ``torch.optim.SGD``."""
    network = models.build(Logistic(), data.meta.shape, data.meta.classes, seed=4)
    found = PublicSeedModel(steps=7, lr=0.3, batch_size=10**6).parameters(network, data, seed=4)
    module = Logistic().build(data.meta.shape, data.meta.classes)
    module.load_state_dict(network.parameters)
    sgd = torch.optim.SGD(module.parameters(), 0.3)
    x, y = torch.from_numpy(np.array(data.public_x)), torch.from_numpy(np.array(data.public_y))
    for _ in range(7):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        sgd.step()
    for name, value in module.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_without_steps_it_is_the_fresh_network_and_with_them_it_repeats(data):
    network = models.build(Logistic(), data.meta.shape, data.meta.classes, seed=4)
    fresh = NoSeedModel().parameters(network, data, seed=4)
    none = PublicSeedModel(steps=0).parameters(network, data, seed=4)
    assert all(torch.equal(none[name], value) for name, value in fresh.items())
    once, again, other = (PublicSeedModel(steps=3).parameters(network, data, seed) for seed in (4, 4, 5))
    assert all(torch.equal(once[name], value) for name, value in again.items())
    assert not all(torch.equal(once[name], value) for name, value in other.items())


def test_the_run_starts_from_it(data, tmp_path):
    """After a round of no learning to speak of the model is as good as its seed model."""

    def accuracy(seed_model: dict) -> float:
        folder = tmp_path / seed_model["name"] / "artifacts"
        folder.mkdir(parents=True)
        (folder / "partition").symlink_to(data.path)
        train(build(DOCUMENT | {"train": DOCUMENT["train"] | {"seed_model": seed_model}}), folder, Tracker("train"))
        return read_lines(folder / "train" / "history.jsonl")[-1]["test_accuracy"]

    network = models.build(Logistic(), data.meta.shape, data.meta.classes, seed=0)
    seeded = PublicSeedModel(steps=60, lr=0.5).parameters(network, data, seed=0)
    _, hits = models.score(network, seeded, torch.from_numpy(data.test_x), torch.from_numpy(data.test_y))
    assert accuracy({"name": "public", "steps": 60, "lr": 0.5}) == pytest.approx(float(hits.mean()), abs=0.01)
    assert float(hits.mean()) > accuracy({"name": "none"}) + 0.3


def test_a_seed_model_without_public_samples_is_refused():
    with pytest.raises(ParamsRefused, match=r"train\.seed_model\.name = 'public'"):
        build({"train": {"seed_model": {"name": "public"}}})
