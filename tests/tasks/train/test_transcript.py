"""The transcript is what crossed the wire: to the bit what was sent, decoded to the bit what the server used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tasks import keys, models, tree
from tasks.train.algorithms import FedAvg, FedProx, Scaffold
from tasks.train.engine.program import PURPOSES
from tasks.train.settings import Recording, TrainSettings
from tasks.train.transcript import Message, Transcript
from tasks.train.uplink import Chain
from tasks.train.uplink.clip import Clip
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.sign import Sign
from tasks.train.uplink.topk import TopK
from tests.tasks.train.runs import MODEL, SIZES, run

ROUND, SEED = 3, 3
CHAINS = {
    "plain": (),
    "clip": (Clip(norm=0.05),),
    "sparse": (TopK(density=0.2),),
    "sparse and quantised": (RandomK(density=0.3), Quantize(bits=3)),
    "sign": (Sign(),),
}
CASES = [
    *[pytest.param(FedAvg(epochs=2, batch_size=4), chain, id=name) for name, chain in CHAINS.items()],
    pytest.param(FedProx(batch_size=4, mu=0.5, momentum=0.5), (), id="proximal, with momentum"),
    pytest.param(Scaffold(epochs=2, batch_size=4), (TopK(density=0.5),), id="with control variates"),
]


def recorded(data, algorithm, uplink, stack: int = 4, clients: int = 8):
    """A run whose last round is recorded, and its transcript."""
    train = TrainSettings(
        rounds=ROUND, cohort=len(SIZES), algorithm=algorithm, uplink=uplink, transcript=Recording(clients=clients)
    )
    coordinator = run(data, train, ROUND, stack=stack, recorded=(1, ROUND), seed=SEED)
    transcript = Transcript.open(data.path.parent / "transcript")
    return coordinator, transcript, [m for m in transcript.messages if m.context.round == ROUND]


@pytest.mark.parametrize(("algorithm", "uplink"), CASES)
def test_a_payload_decodes_to_the_upload_that_the_server_used(data, algorithm, uplink):
    coordinator, _, messages = recorded(data, algorithm, uplink)
    used = tree.part(coordinator.uploads, "delta")
    rows = {int(client): row for row, client in enumerate(coordinator.uploads["clients"])}
    assert sorted(rows) == sorted(message.context.client for message in messages) == list(range(len(SIZES)))
    for message in messages:
        delta = tree.part(message.upload(uplink), "delta")
        for name, value in tree.take(used, rows[message.context.client]).items():
            assert torch.equal(delta[name], value)


@pytest.mark.parametrize(("algorithm", "uplink"), CASES)
def test_the_recorded_uploads_make_the_servers_next_model(data, algorithm, uplink):
    """Re-aggregating the messages by hand, with weights of the numbers of samples, gives the model of the run."""
    coordinator, _, messages = recorded(data, algorithm, uplink)
    weights = algorithm.weights(torch.tensor([message.context.samples for message in messages]))
    deltas = [tree.part(message.upload(uplink), "delta") for message in messages]
    for name, start in messages[0].model().items():
        mean = sum(w * delta[name] for w, delta in zip(weights, deltas, strict=True)) / weights.sum()
        torch.testing.assert_close(coordinator.model[name], start + mean, rtol=1e-5, atol=1e-6)


def test_the_broadcast_is_what_was_sent(data):
    """In round 1 the initial model; in a later round the one after the round before; with what the method adds."""
    coordinator, transcript, messages = recorded(data, Scaffold(batch_size=4), ())
    initial = models.build(MODEL, data.meta.shape, data.meta.classes, SEED).parameters
    first = next(m for m in transcript.messages if m.context.round == 1)
    assert all(torch.equal(first.model()[name], value) for name, value in initial.items())
    sent, start = messages[0].broadcast(), tree.part(coordinator.uploads, "start")
    assert all(torch.equal(messages[0].model()[name], value) for name, value in start.items())
    assert float(sent["lr"]) == np.float32(0.1)
    assert set(tree.part(sent, "control")) == set(initial)
    assert coordinator.ledger.bytes_down == len(SIZES) * tree.nbytes(sent)


def replayed(data, train: TrainSettings, message: Message, private: dict) -> dict:
    """What a client sends that goes through the recorded batch in the recorded order, all by itself."""
    context, shared = message.context, message.broadcast()
    network = models.build(MODEL, data.meta.shape, data.meta.classes, SEED)
    own = keys.each(keys.derive(SEED, "round", context.round, 0), np.array([context.client]))
    key = torch.from_numpy(own)[0]
    state = train.algorithm.client_init(shared, {}, {})
    for step, rows in enumerate(private["order"]):
        used = rows[rows >= 0]
        batch = {"x": private["x"][used], "y": private["y"][used], "weight": torch.ones(len(used))}
        state, _ = train.algorithm.client_step(network, state, batch, keys.fold(key, -step))
    upload, _ = train.algorithm.client_final(shared, state)
    chain = Chain(train.uplink, upload)
    payload, _ = chain.encode(upload, chain.memory(), keys.fold(key, PURPOSES["uplink"]))
    return payload


@pytest.mark.parametrize("chain", ["plain", "clip", "sparse", "sparse and quantised", "sign"])
def test_replaying_the_private_batch_gives_the_payload_to_the_bit(data, chain):
    """With a stack of one, in the first round, where no client remembers anything yet."""
    train = TrainSettings(
        rounds=ROUND, cohort=len(SIZES), algorithm=FedAvg(epochs=2, batch_size=4), uplink=CHAINS[chain]
    )
    _, transcript, _ = recorded(data, train.algorithm, train.uplink, stack=1)
    messages = [message for message in transcript.messages if message.context.round == 1]
    assert len(messages) == len(SIZES)
    for message in messages:
        with torch.no_grad():
            expected = replayed(data, train, message, transcript.private(message))
        for name, value in message.payload().items():
            assert torch.equal(value, expected[name]), name


def test_replaying_a_stacked_client_gives_the_payload_to_rounding(data):
    train = TrainSettings(rounds=ROUND, cohort=len(SIZES), algorithm=FedAvg(epochs=2, batch_size=4))
    _, transcript, messages = recorded(data, train.algorithm, (), stack=8)
    for message in messages:
        expected = replayed(data, train, message, transcript.private(message))
        for name, value in message.payload().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_the_private_batch_is_the_clients_data_each_sample_once_a_pass(data):
    _, transcript, messages = recorded(data, FedAvg(epochs=3, batch_size=4), ())
    for message in messages:
        context, private = message.context, transcript.private(message)
        owned = data.train(context.client)
        assert np.array_equal(private["x"].numpy(), data.x[owned])
        assert np.array_equal(private["y"].numpy(), data.y[owned])
        assert context.samples == SIZES[context.client]
        assert private["order"].shape[0] == context.steps == 3 * -(-context.samples // 4)
        for one_pass in private["order"].chunk(3):
            assert sorted(one_pass[one_pass >= 0].tolist()) == list(range(context.samples))


def test_of_a_pass_that_was_broken_off_the_private_batch_has_what_came_up(data):
    train = TrainSettings(rounds=ROUND, cohort=len(SIZES), algorithm=FedAvg(steps=3, batch_size=4))
    _, transcript, messages = recorded(data, train.algorithm, (), stack=1)
    for message in messages:
        context, private = message.context, transcript.private(message)
        assert context.samples == len(private["y"]) == min(SIZES[context.client], 12)
        assert private["order"].shape[0] == context.steps == 3
        assert sorted(set(private["order"][private["order"] >= 0].tolist())) == list(range(context.samples))
        with torch.no_grad():
            expected = replayed(data, train, message, private)
        for name, value in message.payload().items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("algorithm", "uplink"), CASES)
def test_a_messages_bytes_are_those_of_its_tensors_on_disk(data, algorithm, uplink):
    """A safetensors file is a length of 8 bytes, a header, and the tensors: as many bytes as the context says."""
    coordinator, _, messages = recorded(data, algorithm, uplink)
    for message in messages:
        raw = save(message.payload())
        header = int.from_bytes(raw[:8], "little")
        assert len(raw) - 8 - header == message.context.bytes == tree.nbytes(message.payload())
    assert coordinator.ledger.bytes_up == sum(message.context.bytes for message in messages)


def test_the_most_exposed_clients_are_recorded_unless_told_otherwise(data):
    _, _, messages = recorded(data, FedAvg(), (), clients=3)
    assert {SIZES[message.context.client] for message in messages} == set(sorted(SIZES)[:3])
    first = Recording(clients=3, smallest=False).choose(np.array([2, 5, 7, 9]), np.array([9, 8, 1, 2]))
    assert first.tolist() == [2, 5, 7]


def test_nothing_private_lies_outside_the_private_folder(data):
    """No file beside `private/` holds a row of the data: neither a payload, nor a broadcast, nor the template."""
    _, transcript, _ = recorded(data, FedAvg(batch_size=4), ())
    rows = {data.x[i].tobytes() for i in range(len(data.x))}
    for path in sorted(Path(transcript.folder).rglob("*.safetensors")):
        found = any(row in path.read_bytes() for row in rows)
        assert found == ("private" in path.parts), path
