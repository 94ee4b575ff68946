"""Asynchronous runs: stacks of mixed versions give what one client after another gives, and any run can be taken up."""

import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from tasks import artifacts, models, tree
from tasks.params import build
from tasks.partition.federation import Federation
from tasks.train.algorithms import FedAvg, FedPer
from tasks.train.algorithms.server_optimizers import SGD
from tasks.train.coordinator import Coordinator
from tasks.train.devices import LinearDevices, LognormalDevices, NormalDevices
from tasks.train.engine.plan import Plan
from tasks.train.engine.program import Blueprint, Job
from tasks.train.engine.workers import hire
from tasks.train.memory import Shelf
from tasks.train.privacy import Sums
from tasks.train.privacy.accountant import gaussian
from tasks.train.privacy.gaussian import Gaussian
from tasks.train.schedules import FedAsync, FedBuff, FedCompass, FedFix, Sync
from tasks.train.schedules.asynchronous import Staleness
from tasks.train.schedules.weights import Identical
from tasks.train.settings import TrainSettings
from tasks.train.transcript import Recorder, Transcript
from tasks.train.uplink import Chain, TopK
from tasks.train.uplink.dgc import DeepGradientCompression
from tests.tasks.train.runs import MODEL, federation, run
from tests.tasks.train.test_engine import everything, same
from tests.tasks.train.test_stage import contents, finish, start

EVERY = len((1, 3, 5, 8, 13, 16, 17, 20))
DGC = DeepGradientCompression(density=0.3, warmup=(0.8, 0.5), warmup_rounds=4)
COMPASS = FedCompass(max_steps=6, min_steps=2, latest_factor=1.2)
SCHEDULES = (
    FedFix(period=0.4),
    FedAsync(staleness=Staleness(exponent=0.5)),
    FedAsync(mixing=True, weighting=Identical(), staleness=Staleness(alpha=0.6)),
    FedBuff(size=3),
    FedBuff(size=5, restart="immediately"),
    COMPASS,
)


def settings(**changes) -> TrainSettings:
    given = {
        "rounds": 12, "cohort": EVERY, "algorithm": FedAvg(epochs=2, batch_size=4), "uplink": (DGC,),
        "devices": LognormalDevices(spread=1.0, jitter=0.1),
    }  # fmt: skip
    return TrainSettings(**given | changes)


# Known methods as limits.


@pytest.mark.parametrize(
    "devices", [LinearDevices(), NormalDevices(), LognormalDevices(spread=1.0)], ids=lambda d: d.name
)
def test_fedfix_with_the_slowest_clients_period_is_the_synchronous_schedule_to_the_last_bit(data, devices):
    """Model, memories, bytes and clock, for any devices, with an uplink that remembers."""
    train = settings(devices=devices, uplink=(TopK(density=0.3),))
    rounds, fixed = (run(data, train.model_copy(update={"schedule": s}), 6) for s in (Sync(), FedFix(period=1.0)))
    assert same(rounds.model, fixed.model)
    everyone = np.arange(EVERY)
    for name, memory in rounds.memories.items():
        assert same(memory.gather(everyone), fixed.memories[name].gather(everyone))
    assert fixed.clock == pytest.approx(rounds.clock)
    assert fixed.ledger._replace(delays=None) == rounds.ledger


def test_a_buffer_for_all_equal_clients_is_one_large_step(tmp_path):
    """With one local step on all samples it is a step of gradient descent on everybody's data."""
    data = federation(tmp_path / "partition", sizes=(6,) * 5)
    train = settings(cohort=5, algorithm=FedAvg(steps=1, batch_size=0), uplink=(), devices=LinearDevices(spread=0))
    rounds, buffered = (run(data, train.model_copy(update={"schedule": s}), 5) for s in (Sync(), FedBuff(size=5)))
    assert same(rounds.model, buffered.model)


@pytest.mark.parametrize(
    "schedule",
    [FedFix(period=1.0), FedAsync(), FedAsync(mixing=True), FedBuff(size=1)],
    ids=["fedfix", "fedasync", "mixing", "fedbuff"],
)
def test_with_one_client_every_schedule_is_local_training(tmp_path, schedule):
    data = federation(tmp_path / "partition", sizes=(17,))
    train = settings(cohort=1, uplink=(), devices=NormalDevices())
    alone, other = (run(data, train.model_copy(update={"schedule": s}), 5) for s in (Sync(), schedule))
    assert same(alone.model, other.model)


def test_fedcompass_with_equal_clients_takes_rounds_of_all_at_a_server_rate_of_alpha(tmp_path):
    """From the second step of the group on, each step is a synchronous round from the same model."""
    data = federation(tmp_path / "partition", sizes=(12,) * 4)
    train = settings(cohort=4, uplink=(), devices=LinearDevices(spread=0), schedule=COMPASS)
    before, after = (run(data, train, count) for count in (6, 7))
    round_ = train.model_copy(
        update={"schedule": Sync(), "algorithm": FedAvg(steps=6, batch_size=4, server=SGD(lr=0.9))}
    )
    sync = run(data, round_, 0)
    sync.server, sync.rounds = before.server, 3  # before each client's fourth turn
    with hire(Blueprint(data.path, MODEL, round_, sync.plan, sync.seed)) as sync.workers:
        sync.round(np.arange(4))
    for name, value in after.model.items():
        torch.testing.assert_close(sync.model[name], value)
    assert after.ledger.delays["max_staleness"] == 0


# Against one client after another.


def one_by_one(data: Federation, train: TrainSettings, count: int, seed: int = 3) -> tuple[dict, dict]:
    """The model and the clients' memories after some steps, by a loop over flights in the order of their arrival."""
    network = models.build(MODEL, data.meta.shape, data.meta.classes, seed)
    with hire(Blueprint(data.path, MODEL, train, Plan(1, "cpu", 0), seed)) as workers:
        helper = Coordinator(
            train,
            Plan(1, "cpu", 0),
            seed,
            data,
            network.parameters,
            workers,
            Recorder(data.path),
            data.path.parent / "none",
        )
        program, traffic, work = workers.program, helper.traffic, train.algorithm
        residuals = {c: Chain(train.uplink, traffic.like).memory() for c in range(data.clients)}
        memories = {c: work.client_memory(traffic.broadcast) for c in range(data.clients)}
        server, shared, uploads = helper.server, {}, {}
        plan = [step for step, _ in zip(train.schedule.steps(helper.fleet()), range(count), strict=False)]
        for step in plan:
            request = work.request(server, torch.zeros(1, dtype=torch.int64))
            shared[step.number - 1] = request.known | request.shared
            arrived = sorted((f for s in plan[: step.number] for f in s.sent), key=lambda f: (f.due, f.client))
            for flight in (
                f for f in arrived if f.number not in uploads and (f.due <= step.seconds or f in step.flights)
            ):
                who = np.array([flight.client])
                job = Job(
                    work, flight.version + 1, 0, who, {}, *(
                        tree.map(lambda v: v[None], kept[flight.client]) for kept in (memories, residuals)
                    ), traffic.like, (), True, np.array([flight.turn]), traffic.steps(who, [flight.steps]),
                )  # fmt: skip
                result = program.run(shared[flight.version], job)
                uploads[flight.number] = tree.take(result.each, 0)
                memories[flight.client], residuals[flight.client] = (
                    tree.take(part, 0) for part in (result.memory, result.residual)
                )
            if not step.flights:
                continue
            model, total = tree.part(server, "model"), {}
            for flight, weight in zip(step.flights, step.weights / step.over, strict=True):
                change = tree.part(uploads[flight.number], "delta")
                if step.mixes:
                    start_ = tree.part(shared[flight.version], "model")
                    change = {n: start_[n] + change[n] - model[n] for n in change}
                total = {n: total.get(n, 0) + weight * change[n] for n in change}
            server = server | tree.join(model={n: value + total.get(n, 0) for n, value in model.items()})
    return tree.part(server, "model"), residuals


@pytest.mark.parametrize(
    ("schedule", "cohort"), [(s, EVERY) for s in SCHEDULES] + [(s, 3) for s in SCHEDULES if s is not COMPASS]
)
def test_stacks_of_mixed_versions_give_what_one_client_after_another_gives(data, schedule, cohort):
    """With stale models, clients that are called at different rates, and a codec that remembers and warms up."""
    train = settings(schedule=schedule, cohort=cohort)
    naive, residuals = one_by_one(data, train, 12)
    stacked = run(data, train, 12, stack=4)
    for name, value in naive.items():
        torch.testing.assert_close(stacked.model[name], value, rtol=1e-4, atol=1e-5)
    kept = stacked.memories["fedavg/residual"]
    for client, residual in residuals.items():
        found = tree.take(kept.gather(np.array([client])), 0)
        for name, value in residual.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


# What is whose, and when.


def test_a_client_remembers_its_work_when_it_has_arrived_and_not_when_it_is_found(data):
    """Work that is found early, in the stack of others, is not the client's before the clock says so."""
    train = settings(algorithm=FedPer(epochs=1), uplink=(), schedule=FedAsync())
    early = run(data, train, 1)
    (first,) = early.schedule()[0].flights
    assert len(early.flights.answered) == EVERY - 1
    heads = early.memories["fedper/memory"]
    changed = [c for c in range(EVERY) if not same(tree.take(heads.gather(np.array([c])), 0), heads.like)]
    assert changed == [first.client]


def test_bytes_are_counted_when_they_are_sent_and_time_follows_from_them(data):
    train = settings(schedule=FedAsync(), uplink=(DGC,))
    steps, seen = 10, []
    plan = Plan(4, "cpu", 0)
    network = models.build(MODEL, data.meta.shape, data.meta.classes, 3)
    folder = Path(tempfile.mkdtemp(dir=data.path.parent))
    with hire(Blueprint(data.path, MODEL, train, plan, 3)) as hired:
        coordinator = Coordinator(train, plan, 3, data, network.parameters, hired, Recorder(folder), folder)
        running = train.schedule.run(coordinator)
        for _ in range(steps):
            next(running)
            seen.append(coordinator.ledger)
        traffic = coordinator.traffic
    model = tree.nbytes(coordinator.model)
    assert [ledger.bytes_down for ledger in seen] == [EVERY * (model + 4)] + [model + 4] * (steps - 1)
    assert traffic.down == model + 4
    # The codec's warm-up goes by the server's steps: messages shrink with them.
    ups = [traffic.up(step.flights[0].version) for step in coordinator.schedule()]
    assert [ledger.bytes_up for ledger in seen] == ups
    assert traffic.up(0) > traffic.up(2) > traffic.up(4) == traffic.up(100)
    speeds = traffic.speeds
    batches = train.algorithm.batches
    for flight in coordinator.schedule()[0].sent:
        c = flight.client
        usual = train.devices.model_copy(update={"jitter": 0.0})
        assert usual.speeds(np.array([c]), 3, EVERY).upload[0] == speeds.upload[c]
        links = 2 * speeds.latency[c] + traffic.down / speeds.download[c] + traffic.up(0) / speeds.upload[c]
        work = batches.seen(int(data.sizes[c])) / speeds.compute[c]
        assert flight.due - links == pytest.approx(work, rel=0.5)
        assert flight.due - links != pytest.approx(work, rel=1e-6)


def test_a_pace_varies_from_turn_to_turn_around_the_usual(data):
    devices, everyone = LognormalDevices(jitter=0.2), np.arange(2000)
    usual = devices.speeds(everyone, 1, 2000)
    again = devices.varied(usual, everyone, np.zeros(2000, np.int64), 1)
    assert (again.compute == usual.compute).all()
    first, second = (
        np.log(devices.varied(usual, everyone, np.full(2000, turn), 1).compute / usual.compute) for turn in (1, 2)
    )
    assert first.std() == pytest.approx(0.2, rel=0.1)
    assert abs(first.mean()) < 0.02
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert (devices.varied(usual, everyone, np.full(2000, 1), 1).upload == usual.upload).all()


# Privacy.


def test_noise_is_measured_by_the_heaviest_upload_of_a_step():
    mechanism, key = Gaussian(noise_multiplier=2.0, clip_norm=0.5), torch.tensor(7)
    zeros, weight = {"delta/w": torch.zeros(1000)}, torch.tensor(3.0)
    one, three = (
        mechanism.release({}, Sums(zeros, {}, weight, 3, heaviest), 3, key)[0].total["delta/w"]
        for heaviest in (1.0, 3.0)
    )
    torch.testing.assert_close(three, 3 * one)
    assert float(one.std()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "schedule", [FedBuff(size=3, weighting=Identical()), FedBuff(size=4, restart="immediately"), FedFix(period=0.3)]
)
def test_epsilon_is_that_of_the_client_that_has_weighed_most_without_amplification(data, schedule):
    """k uploads of a client in one buffer are as k^2 releases; a light upload is less than one."""
    uniform = FedAvg(batch_size=4, weighting="uniform")
    train = settings(schedule=schedule, algorithm=uniform, privacy=Gaussian(noise_multiplier=3.0, delta=1e-5))
    found = run(data, train, 12)
    exposure = np.zeros(EVERY)
    for step in found.schedule():
        shares = np.zeros(EVERY)
        np.add.at(shares, [f.client for f in step.flights], step.weights / max(step.weights, default=1.0))
        exposure += shares**2
    assert found.epsilon() == pytest.approx(gaussian(1.5, exposure.max(), 1e-5), rel=1e-9)


def test_deep_gradient_compression_under_fedbuff_with_private_clipping_runs_and_clips(data):
    uniform = FedAvg(batch_size=4, weighting="uniform")
    quiet = Gaussian(noise_multiplier=0.0, clip_norm=1e-3)
    train = settings(schedule=FedBuff(size=3, weighting=Identical()), algorithm=uniform, privacy=quiet)
    before, after = run(data, train, 11), run(data, train, 12)
    moved = {name: after.model[name] - value for name, value in before.model.items()}
    assert 0 < float(tree.norm(moved)) <= 1e-3 * (1 + 1e-5)
    assert float(tree.norm(tree.part(tree.take(after.uploads, 0), "delta"))) <= 1e-3 * (1 + 1e-5)


def test_the_gap_of_a_mixing_server_does_not_tell_what_was_rejected(data):
    """Where every upload is rejected the server still goes on to the model that it was counted from."""
    uniform = FedAvg(batch_size=4, weighting="uniform")
    private = settings(algorithm=uniform, uplink=(), privacy=Gaussian(clip_norm=1.0), reject_above=1e-12)
    mixed, plain, before = (
        run(data, private.model_copy(update={"schedule": FedAsync(mixing=mixing, weighting=Identical())}), rounds)
        for mixing, rounds in ((True, 2), (False, 2), (False, 1))
    )
    (flight,), d = mixed.schedule()[1].flights, mixed.schedule()[1].weights[0] / mixed.schedule()[1].over
    assert flight.version == 0 and mixed.ledger.rejected == 1
    start = run(data, private, 0).model
    for name, value in start.items():
        gap = d * (value - before.model[name])
        torch.testing.assert_close(mixed.model[name] - plain.model[name], gap, rtol=1e-4, atol=1e-6)
        assert float(gap.norm()) > 1e-3


# What is recorded.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_recorded_messages_are_those_of_the_step_that_took_them_in(data, schedule):
    """Each decodes to the upload that the server had, and answers the model that was sent, however old."""
    train = settings(schedule=schedule, rounds=9)
    coordinator = run(data, train, 9, recorded=(9,))
    step = coordinator.schedule()[-1]
    transcript = Transcript.open(data.path.parent / "transcript")
    chosen = train.transcript.choose(
        *(np.array(x) for x in ([f.client for f in step.flights], data.sizes[[f.client for f in step.flights]]))
    )
    assert sorted(m.context.client for m in transcript.messages) == sorted(set(chosen.tolist()))
    kept = coordinator.uploads
    for message in transcript.messages:
        place = max(i for i, f in enumerate(step.flights) if f.client == message.context.client)
        flight = step.flights[place]
        upload = message.upload(train.uplink)
        for name, value in tree.part(upload, "delta").items():
            assert torch.equal(value, kept[f"delta/{name}"][place])
        assert (message.context.turn, message.context.sent_in) == (flight.turn, flight.version + 1)
        if flight.version:
            sent = run(data, train, flight.version).model
            assert same(message.model(), sent)


# Interrupted and taken up.


def taken_up(data: Federation, train: TrainSettings, count: int, at: int, folder: Path, seed: int = 3) -> Coordinator:
    """A run of ``count`` steps that is given up after ``at`` of them, one step after its last checkpoint."""
    network = models.build(MODEL, data.meta.shape, data.meta.classes, seed)
    plan, state = Plan(4, "cpu", 0), None
    with hire(Blueprint(data.path, MODEL, train, plan, seed)) as hired:
        for until in (at, count):
            coordinator = Coordinator(train, plan, seed, data, network.parameters, hired, Recorder(folder), folder)
            if state:
                coordinator.restore(state)
            steps = train.schedule.run(coordinator)
            while coordinator.rounds < until:
                next(steps)
            coordinator.flush()
            artifacts.write_tree(folder / "state.safetensors", coordinator.state())
            coordinator.commit()
            state = artifacts.read_tree(folder / "state.safetensors")
            if until < count:
                next(steps)
    return coordinator


@pytest.mark.parametrize("algorithm", [FedAvg(epochs=2, batch_size=4), FedPer(batch_size=4)], ids=["fedavg", "fedper"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_a_run_that_stopped_after_any_step_goes_on_to_the_same_bits(data, tmp_path, schedule, algorithm):
    """From its checkpoint and the rows that it had written, with work in flight that was done and that was not."""
    train = settings(schedule=schedule, algorithm=algorithm, uplink=(TopK(density=0.3),))
    expected = everything(run(data, train, 9))
    for at in (1, 2, 5, 8):
        found = everything(taken_up(data, train, 9, at, tmp_path / f"at-{at}"))
        ignored = "slots"  # where in the file a row lies is of no consequence
        assert same(*({n: v for n, v in x.items() if ignored not in n} for x in (found, expected)))


def test_a_shelf_gives_back_what_a_checkpoint_knows_whatever_was_put_and_dropped_since(tmp_path):
    rng, shelf, naive = np.random.default_rng(0), Shelf({"v": torch.zeros(3)}, tmp_path / "rows"), {}
    for number in range(200):
        value = torch.from_numpy(rng.normal(size=(1, 3))).float()
        shelf.put([number], {"v": value})
        naive[number] = value[0]
        if len(naive) > 5:
            gone = int(rng.choice(list(naive)))
            shelf.drop([gone])
            del naive[gone]
        if number == 120:
            shelf.flush()
            state, then = shelf.state(), dict(naive)
            shelf.commit()
        if number < 100 and number % 10 == 0:
            shelf.commit()
    assert len(shelf.rows) <= 160
    again = Shelf.restored(state, tmp_path / "rows")
    assert sorted(again.slots) == sorted(then)
    for number, value in then.items():
        assert torch.equal(again.get([number])["v"][0], value)
    assert torch.equal(shelf.get(list(naive))["v"], torch.stack(list(naive.values())))


PARAMS = {
    "partition": {"dataset": {"name": "digits"}, "clients": 12},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {
        "rounds": 60,
        "seconds": 12.0,
        "cohort": 12,
        "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 16},
        "uplink": [{"name": "dgc", "density": 0.1}],
        "schedule": {"name": "fedcompass", "max_steps": 8, "min_steps": 2},
        "devices": {"name": "exponential", "samples_per_second": 50.0, "jitter": 0.05},
        "engine": {"workers": 0, "checkpoint_every": 3},
        "transcript": {"rounds": ["first", "last"], "clients": 2},
    },
}


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asynchronous")
    build(PARAMS)
    YAML().dump(PARAMS, folder / "params.yaml")
    done = finish("partition", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(partitioned) -> dict[str, bytes]:
    done = finish("train", partitioned)
    assert done.returncode == 0, done.stderr
    return contents(partitioned / "artifacts" / "train")


def test_killed_at_random_it_goes_on_to_the_same_bytes(partitioned, undisturbed, tmp_path):
    shutil.copytree(partitioned / "artifacts" / "partition", tmp_path / "artifacts" / "partition")
    shutil.copy(partitioned / "params.yaml", tmp_path)
    process, deadline = start("train", tmp_path), time.monotonic() + 60
    while not list((tmp_path / ".fedloom").glob("checkpoints/*/round-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(0).random() * 0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = finish("train", tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "artifacts" / "train") == undisturbed


def test_the_run_ends_with_its_seconds_and_leaves_the_log_of_its_arrivals(partitioned, undisturbed):
    folder = partitioned / "artifacts" / "train"
    history = artifacts.read_lines(folder / "history.jsonl")
    assert history[-2]["virtual_seconds"] < 12.0 <= history[-1]["virtual_seconds"]
    assert history[-1]["test_accuracy"] is not None
    lines = undisturbed["schedule.csv"].decode().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    for row in history:
        taken = [r for r in rows if int(r["step"]) == row["round"]]
        assert len(taken) == row["cohort"]
        assert {float(r["seconds"]) for r in taken} == {row["virtual_seconds"]}
        assert row["staleness"] == pytest.approx(np.mean([int(r["staleness"]) for r in taken]))
        assert row["max_staleness"] == max(int(r["staleness"]) for r in taken)
    recorded = Transcript.open(folder / "transcript").messages
    assert {message.context.round for message in recorded} == {1, history[-1]["round"]}
    summary = artifacts.read_json(folder / "summary.json")
    assert 0 <= summary["idle"] < 1
    assert summary["schedule_bias"] > 0
