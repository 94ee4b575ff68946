"""The local penalty on disparity: exact on one step, nothing at all at 0, and able to remove what is local alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tasks import models
from tasks.aggregate.fairness import Disparity, contingency, decompose
from tasks.config import Refused
from tasks.keys import generator
from tasks.models.architectures import Logistic
from tasks.params import build
from tasks.partition.federation import Federation
from tasks.partition.splits import Sensitive
from tasks.train.algorithms import FedAvg, Parity
from tasks.train.settings import TrainSettings
from tasks.train.topologies.gossip import Gossip
from tasks.train.topologies.graphs import Complete
from tests.tasks.train.runs import MODEL, SIZES, federation, run

ALL = len(SIZES)


def grouped(data: Federation, groups: np.ndarray) -> Federation:
    """The same federation, published with groups."""
    np.save(data.path / "groups.npy", groups)
    np.save(data.path / "test_groups.npy", np.zeros(len(data.test_y), np.int64))
    meta = json.loads((data.path / "meta.json").read_text())
    meta |= {"groups": {"name": "sex", "values": ["f", "m"]}}
    (data.path / "meta.json").write_text(json.dumps(meta))
    return Federation.open(data.path)


@pytest.fixture
def two_groups(tmp_path: Path) -> Federation:
    data = federation(tmp_path / "partition", classes=2)
    return grouped(data, np.random.default_rng(1).integers(0, 2, sum(SIZES)))


def settings(algorithm, **others) -> TrainSettings:
    return TrainSettings(**{"rounds": 3, "cohort": ALL, "algorithm": algorithm} | others)


@pytest.mark.parametrize("stack", [1, 8])
def test_without_weight_it_is_fedavg_to_the_last_bit(two_groups, stack):
    plain = run(two_groups, settings(FedAvg(epochs=2, batch_size=4)), rounds=3, stack=stack).model
    free = run(two_groups, settings(Parity(epochs=2, batch_size=4, lam=0.0)), rounds=3, stack=stack).model
    assert all(torch.equal(plain[name], free[name]) for name in plain)


@pytest.mark.parametrize("stack", [1, 8])
def test_a_step_goes_down_the_loss_and_the_squared_gap_of_every_client(two_groups, stack):
    got = run(two_groups, settings(Parity(batch_size=0, lr=0.3, lam=5.0)), rounds=1, stack=stack).model
    network = models.build(MODEL, two_groups.meta.shape, 2, 3)
    params = {name: value.requires_grad_() for name, value in network.parameters.items()}
    total = torch.zeros(())
    for client, size in enumerate(SIZES):
        mine = two_groups.train(client)
        outputs, z = network.apply(params, torch.from_numpy(two_groups.x[mine])), two_groups.groups[mine]
        loss = cross_entropy(outputs, torch.from_numpy(two_groups.y[mine]))
        if len(set(z)) == 2:
            p = outputs.softmax(1)[:, 1]
            loss = loss + 5.0 * (p[z == 1].mean() - p[z == 0].mean()) ** 2
        total = total + loss * size / sum(SIZES)
    total.backward()
    for name, value in params.items():
        torch.testing.assert_close(got[name], value.detach() - 0.3 * value.grad, rtol=1e-4, atol=1e-6)


def test_data_without_groups_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"algorithm\.name = 'parity': the dataset has no groups"):
        run(federation(tmp_path / "partition"), settings(Parity()), rounds=1)


@pytest.mark.parametrize(
    ("field", "said"), [("group", r"group = 5: .* below 2.* 0 \(f\), 1 \(m\)"), ("outcome", r"outcome = 5: .* below 2")]
)
def test_groups_and_classes_that_the_data_do_not_have_are_refused(two_groups, field, said):
    with pytest.raises(Refused, match=r"train\.algorithm\." + said):
        run(two_groups, settings(Parity(**{field: 5})), rounds=0)


def test_without_a_server_every_node_goes_down_its_own_penalty(two_groups):
    gossip = Gossip(graph=Complete())
    free, plain, fair = (
        run(two_groups, settings(method, topology=gossip), rounds=3).model
        for method in (Parity(lam=0.0), FedAvg(), Parity(lam=5.0))
    )
    assert all(torch.equal(plain[name], free[name]) for name in plain)
    assert not any(torch.equal(plain[name], fair[name]) for name in plain)
    build(
        {
            "partition": {"clients": 9},
            "train": {"cohort": 9, "algorithm": {"name": "parity"}, "topology": {"name": "gossip"}},
        }
    )


def census(folder: Path, scenario: str) -> Federation:
    """Two clients with features that show the label and the group, split so that the scenario is theirs."""
    rng, samples = np.random.default_rng(2), 2000
    z = rng.integers(0, 2, samples)
    y = (rng.random(samples) < np.where(z == 1, 0.7, 0.3)).astype(np.int64)
    x = np.stack([1.2 * (2 * y - 1), 0.8 * (2 * z - 1), np.zeros(samples), np.zeros(samples)], 1)
    x[:, :2] += rng.normal(size=(samples, 2))
    split = Sensitive(scenario=scenario)
    owner = split.assign(y, {"sex": z}, 2, generator(0, "split"))
    data = federation(folder, sizes=tuple(np.bincount(owner).tolist()), classes=2)
    for name, values in {"x": x.astype(np.float32), "y": y, "indices": np.argsort(owner, kind="stable")}.items():
        np.save(folder / f"{name}.npy", values)
    return grouped(Federation.open(data.path), z.astype(np.int64))


def disparity(data: Federation, lam: float) -> Disparity:
    train = settings(Parity(batch_size=0, steps=5, lr=0.5, lam=lam), cohort=2)
    model = run(data, train, rounds=25, model=Logistic()).model
    network = models.build(Logistic(), data.meta.shape, 2, 3)
    return decompose(contingency(network, model, data, np.arange(2)).sum(2))


def test_it_removes_what_disparity_is_local_and_leaves_what_comes_of_who_is_where(tmp_path):
    even, apart = census(tmp_path / "even", "even"), census(tmp_path / "apart", "attribute")
    before, after = disparity(even, 0.0), disparity(even, 20.0)
    assert before.unique >= 0.95 * before.local > 0.05
    assert after.local <= before.local / 5
    # Fair in every client is not fair for all where clients differ in their groups.
    left = disparity(apart, 20.0)
    assert left.total >= left.local
