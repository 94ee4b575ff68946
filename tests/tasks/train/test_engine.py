"""The engine: the same result whoever does the work, and whoever dies over it."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tasks import models, tree
from tasks.config import Refused
from tasks.models.architectures import CNN, MLP, Custom, Logistic, ResNet
from tasks.train.algorithms import FedAvg, FedCAC, Scaffold
from tasks.train.engine.batches import order
from tasks.train.engine.plan import COMPILE_STEPS, Plan, Workload, resolve, stacks
from tasks.train.engine.program import Blueprint, Job, blank
from tasks.train.engine.workers import RayWorkers
from tasks.train.memory import ClientMemory
from tasks.train.schedules import FedBuff
from tasks.train.settings import Engine, TrainSettings
from tasks.train.topologies.gossip import Gossip
from tasks.train.uplink import Chain, TopK
from tasks.train.work import Batches, Setting
from tests.tasks.train.runs import MODEL, SIZES, federation, run


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    epochs=st.integers(1, 3),
    size=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
@examples(deadline=None, max_examples=60)
def test_every_pass_shows_every_sample_once(sizes, epochs, size, seed):
    own = np.random.default_rng(seed).integers(-(2**62), 2**62, len(sizes))
    positions, steps = order(Batches(epochs, size), np.array(sizes), own)
    for c, samples in enumerate(sizes):
        assert steps[c] == Batches(epochs, size).steps(samples)
        assert (positions[c, steps[c] :] == -1).all()
        passes = positions[c, : steps[c]].reshape(epochs, -1)
        for row in passes:
            assert sorted(row[row >= 0]) == list(range(samples))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    count=st.integers(1, 30),
    size=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
@examples(deadline=None, max_examples=60)
def test_a_number_of_steps_is_as_many_passes_broken_off_there(sizes, count, size, seed):
    own = np.random.default_rng(seed).integers(-(2**62), 2**62, len(sizes))
    batches = Batches(1, size, count)
    positions, steps = order(batches, np.array(sizes), own)
    assert steps.tolist() == [count] * len(sizes)
    whole, _ = order(Batches(count, size), np.array(sizes), own)
    assert (positions == whole[:, :count]).all()
    for c, samples in enumerate(sizes):
        assert batches.seen(samples) == (positions[c] >= 0).sum()
        assert batches.passes(samples) == -(-count // Batches(1, size).steps(samples))


def test_a_clients_order_depends_on_its_own_key_alone():
    """So that it does not matter who else is in the stack."""
    sizes, own = np.array([5, 17, 9]), np.array([11, 22, 33])
    together, _ = order(Batches(2, 4), sizes, own)
    alone, steps = order(Batches(2, 4), sizes[2:], own[2:])
    assert (together[2, : steps[0]] == alone[0]).all()


def test_orders_are_uniform():
    own = np.random.default_rng(0).integers(-(2**62), 2**62, 6000)
    positions, _ = order(Batches(1, 0), np.full(6000, 3), own)
    _, counts = np.unique(positions[:, 0], axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


@given(count=st.integers(0, 50), size=st.integers(1, 12))
def test_stacks_split_the_cohort_with_the_longest_work_first(count, size):
    steps = np.random.default_rng(count).integers(1, 9, count)
    parts = list(stacks(np.arange(count), steps, size))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(count))
    assert all(len(part) <= size for part in parts)
    ordered = steps[np.concatenate(parts)] if parts else steps
    assert (np.diff(ordered) <= 0).all()


@pytest.mark.parametrize(
    "model",
    [
        Logistic(),
        MLP(hidden=(8, 5), activation="tanh"),
        CNN(width=3, hidden=7),
        ResNet(width=4, groups=2, blocks=(1, 1)),
    ],
    ids=lambda m: m.name,
)
def test_stacked_and_looped_clients_agree(tmp_path, model):
    """To 1e-5 in float32, for every network, over ragged clients of one sample and more."""
    data = federation(tmp_path / "partition", shape=(1, 8, 8))
    train = TrainSettings(rounds=2, cohort=len(SIZES), algorithm=FedAvg(batch_size=8, epochs=2))
    looped = run(data, train, rounds=2, stack=1, model=model).model
    stacked = run(data, train, rounds=2, stack=8, model=model).model
    for name in looped:
        torch.testing.assert_close(stacked[name], looped[name], rtol=1e-3, atol=1e-5)


def test_the_layout_follows_from_the_size_of_the_run(monkeypatch):
    """Small models are stacked, large steps are not; long runs are compiled where stacks are of one length."""
    monkeypatch.setattr("shutil.which", lambda name: name)
    engine, small = Engine(device="cpu", workers=0), Workload(5_000, 10_000, 16, 4, 50, COMPILE_STEPS // 4)
    assert resolve(engine, small) == Plan(50, "cpu", 0, compile=True)
    assert resolve(engine, small._replace(rounds=small.rounds - 1)) == Plan(50, "cpu", 0)
    assert resolve(engine, small._replace(asynchronous=True)) == Plan(50, "cpu", 0)
    assert resolve(engine, small._replace(cohort=10_000)).stack == 64
    assert resolve(engine, small._replace(parameters=1_000_000)).stack == 5
    assert resolve(engine, small._replace(operations=10_000_000)) == Plan(1, "cpu", 0)
    wished = Engine(device="cpu", workers=0, compile=True)
    assert resolve(wished, small._replace(asynchronous=True)) == Plan(50, "cpu", 0, compile=True)


def test_without_a_compiler_nothing_is_compiled_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    long = Workload(5_000, 10_000, 16, 4, 50, COMPILE_STEPS)
    assert resolve(Engine(device="cpu", workers=0), long) == Plan(50, "cpu", 0)
    (line,) = capsys.readouterr().out.splitlines()
    assert "no C++ compiler" in line and "g++" in line
    with pytest.raises(Refused, match=r"train\.engine\.compile = True: there is no C\+\+ compiler"):
        resolve(Engine(device="cpu", workers=0, compile=True), long)


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": 7, "algorithm": Scaffold(batch_size=10), "uplink": (TopK(density=0.5),)},
        {"cohort": 7, "algorithm": FedAvg(steps=5, batch_size=4), "schedule": FedBuff(restart="immediately")},
        {"cohort": 8, "algorithm": FedAvg(steps=5, batch_size=4), "topology": Gossip()},
        {"cohort": 7, "algorithm": FedCAC(epochs=2, batch_size=10, beta=2)},
    ],
    ids=["memories and codecs", "models of several ages", "models of their own", "personal models"],
)
def test_compiled_and_stacked_clients_agree(tmp_path, changes):
    """To 1e-5 in float32, with a padded prefix and batch, and whatever the clients start from."""
    data, model, train = federation(tmp_path / "partition"), MLP(hidden=(8,)), TrainSettings(rounds=4, **changes)
    plain = everything(run(data, train, rounds=4, stack=7, model=model))
    compiled = everything(run(data, train, rounds=4, stack=7, model=model, compile=True))
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 16], ids=["one step", "several"])
def test_compiled_and_stacked_images_agree(tmp_path, batch):
    """To 1e-5 in float32, with convolutions and poolings; where nobody takes a second step all is one program."""
    data, model = federation(tmp_path / "partition", shape=(1, 8, 8)), CNN(width=3)
    train = TrainSettings(rounds=1, cohort=len(SIZES), algorithm=FedAvg(batch_size=batch))
    plain = everything(run(data, train, rounds=1, stack=8, model=model))
    compiled = everything(run(data, train, rounds=1, stack=8, model=model, compile=True))
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-5)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def everything(coordinator) -> dict:
    """The server's state, and what every client remembers."""
    clients = np.arange(coordinator.data.clients)
    kept = {name: memory.gather(clients) for name, memory in coordinator.memories.items()}
    return tree.join(state=coordinator.state(), **kept)


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()


TRAIN = TrainSettings(rounds=9, cohort=6, algorithm=Scaffold(batch_size=4), uplink=(TopK(density=0.3),))


@pytest.mark.usefixtures("ray_cluster")
def test_the_number_of_workers_does_not_touch_a_bit(data):
    """Neither of the model, nor of what clients remember."""
    alone = everything(run(data, TRAIN, rounds=3, stack=2))
    for workers in (1, 2, 4):
        assert same(everything(run(data, TRAIN, rounds=3, stack=2, workers=workers)), alone)


@pytest.mark.usefixtures("ray_cluster")
def test_nor_does_it_where_stacks_mix_models_of_several_ages(data):
    train = TRAIN.model_copy(update={"algorithm": FedAvg(batch_size=4), "schedule": FedBuff(restart="immediately")})
    alone, spread = (everything(run(data, train, rounds=6, stack=2, workers=workers)) for workers in (0, 2))
    assert same(alone, spread)


def jobs_of(data, train: TrainSettings, shared: dict) -> list[Job]:
    """A round of all clients in stacks of two, none of whom took part before."""
    like = blank(train.algorithm, shared, {}, train.privacy).upload
    memory = ClientMemory(train.algorithm.client_memory(shared), data.clients, data.path / "memory")
    residual = ClientMemory(Chain(train.uplink, like).memory(), data.clients, data.path / "residual")
    pairs = np.arange(data.clients)[::-1].reshape(-1, 2)
    return [
        Job(train.algorithm, 1, 0, pair, {}, memory.gather(pair), residual.gather(pair), like, each=True)
        for pair in pairs
    ]


def whole_round(data) -> tuple[dict, list[Job]]:
    """A broadcast, and the jobs of all clients that answer it."""
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
    server = TRAIN.algorithm.server_init(network.parameters, Setting(8, 8, 1))
    shared, _ = TRAIN.algorithm.broadcast(server, torch.arange(8))
    return shared, jobs_of(data, TRAIN, shared)


def test_a_killed_worker_does_not_touch_a_bit(data, ray_cluster):
    shared, jobs = whole_round(data)
    blueprint = Blueprint(data.path, MODEL, TRAIN, Plan(2, "cpu", 2), 3)
    expected = [blueprint.program().run(shared, job).each for job in jobs]
    with RayWorkers(blueprint) as pool:
        list(pool.run(shared, jobs))
        before = list(pool.idle)
        results = pool.run(shared, jobs * 5)
        got = [next(results).each]
        victim = ray_cluster.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in before])[0]
        os.kill(victim, signal.SIGKILL)
        got += [result.each for result in results]
        assert set(pool.idle) != set(before)
    assert all(same(a, b) for a, b in zip(got, expected * 5, strict=True))


def test_idle_workers_that_died_together_do_not_end_the_run(data, ray_cluster):
    """More of them than may die over the same clients, and the job is handed to a dead one first."""
    shared, jobs = whole_round(data)
    blueprint = Blueprint(data.path, MODEL, TRAIN, Plan(2, "cpu", 4), 3)
    expected = blueprint.program().run(shared, jobs[0]).each
    with RayWorkers(blueprint) as pool:
        while pool.joining:
            pool._join(pool._next([*pool.joining]))
        for victim in pool.idle[1:]:
            ray_cluster.kill(victim)
        (result,) = pool.run(shared, jobs[:1])
        assert len(pool.idle) + len(pool.joining) == 4
    assert same(result.each, expected)


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_cannot_be_built_ends_the_run_with_the_reason(data, tmp_path):
    shared, jobs = whole_round(data)
    blueprint = Blueprint(tmp_path / "nowhere", MODEL, TRAIN, Plan(2, "cpu", 1), 3)
    with RayWorkers(blueprint) as pool, pytest.raises(Refused, match=r"nowhere/meta.json: does not exist"):
        next(pool.run(shared, jobs))


def test_workers_none_of_whom_comes_up_end_the_run(data, ray_cluster):
    class Stillborn(RayWorkers):
        def _ask(self, actor):
            ray_cluster.kill(actor)
            super()._ask(actor)

    shared, jobs = whole_round(data)
    blueprint = Blueprint(data.path, MODEL, TRAIN, Plan(2, "cpu", 1), 3)
    with Stillborn(blueprint) as pool, pytest.raises(Refused, match="a worker cannot be started"):
        next(pool.run(shared, jobs))


@pytest.mark.usefixtures("ray_cluster")
def test_nobody_is_idle_while_the_server_adds_up_and_jobs_wait(data):
    shared, jobs = whole_round(data)
    with RayWorkers(Blueprint(data.path, MODEL, TRAIN, Plan(2, "cpu", 1), 3)) as pool:
        results = pool.run(shared, jobs[:3])
        next(results)
        assert not pool.idle
        next(results)
        assert not pool.idle
        next(results)
        assert len(pool.idle) == 1


def test_memory_keeps_a_row_for_every_client_it_was_given_and_no_other(tmp_path):
    rng = np.random.default_rng(0)
    memory, naive = (
        ClientMemory({"m": torch.zeros(3), "n": torch.zeros((), dtype=torch.int64)}, 1000, tmp_path / "rows"),
        {},
    )
    for round_ in range(60):
        clients = rng.choice(1000, 7, replace=False)
        expected = torch.stack([naive.get(c, torch.zeros(3)) for c in clients])
        assert torch.equal(memory.gather(clients)["m"], expected)
        values = torch.from_numpy(rng.normal(size=(7, 3))).float()
        memory.scatter(clients, {"m": values, "n": torch.from_numpy(clients)})
        assert torch.equal(memory.gather(clients)["n"], torch.from_numpy(clients))
        naive.update(zip(clients.tolist(), values, strict=True))
        if round_ % 4 == 0:
            memory.flush()
            memory.commit()
    assert len(memory.rows) < 2.5 * len(naive)


def test_memory_comes_back_as_it_was_at_the_checkpoint_whatever_was_written_since(tmp_path):
    """Rows are copied on write, so the file serves the last checkpoint until the next one is safe."""
    rng, fresh = np.random.default_rng(1), {"m": torch.zeros(2)}
    memory = ClientMemory(fresh, 50, tmp_path / "rows")
    everyone = np.arange(50)
    for round_ in range(12):
        clients = rng.choice(50, 20, replace=False)
        memory.scatter(clients, {"m": torch.from_numpy(rng.normal(size=(20, 2))).float()})
        if round_ % 5 == 2:
            memory.flush()
            state, then = memory.state(), memory.gather(everyone)["m"]
            memory.commit()
    again = ClientMemory.restored(state, 50, tmp_path / "rows")
    assert not torch.equal(memory.gather(everyone)["m"], then)
    assert torch.equal(again.gather(everyone)["m"], then)


class WithBatchNorm(torch.nn.Sequential):
    def __init__(self, shape, classes):
        layers = torch.nn.Conv2d(shape[0], 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten()
        super().__init__(*layers, torch.nn.Linear(288, classes))


def test_batch_norm_is_refused_by_name_or_replaced():
    own = Custom(path="tests.tasks.train.test_engine:WithBatchNorm")
    with pytest.raises(Refused, match="its layer 1, a BatchNorm2d, keeps running statistics"):
        models.build(own, (1, 8, 8), 3, 0)
    network = models.build(own.model_copy(update={"batch_norm": "group_norm"}), (1, 8, 8), 3, 0)
    assert isinstance(network.module[1], torch.nn.GroupNorm)


class Lazy(torch.nn.Sequential):
    def __init__(self, width=3):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(width))


def test_a_model_of_ones_own_is_tried_on_a_batch_before_it_is_trained():
    own = Custom(path="tests.tasks.train.test_engine:Lazy")
    first, again = (models.build(own, (1, 8, 8), 3, 0).parameters for _ in range(2))
    assert first["1.weight"].shape == (3, 64) and torch.equal(first["1.weight"], again["1.weight"])
    with pytest.raises(Refused, match=r"outputs of shape \[2, 3\] for a batch of 2, and the data have 10 classes"):
        models.build(own, (1, 8, 8), 10, 0)
    with pytest.raises(Refused, match=r"fails on a batch of shape \[2, 5, 5\]"):
        models.build(Custom(path="tests.tasks.train.test_engine:WithBatchNorm"), (5, 5), 3, 0)
