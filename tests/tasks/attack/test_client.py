"""The honest client that is played once more is the client of the run, whatever it is sent and by whichever rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks import models, tree
from tasks.attack.attacks import Imprint
from tasks.attack.case import Case, Public
from tasks.attack.client import HonestClient
from tasks.attack.defences import Design, NoDefence, Noise, Offer, Pipeline, Protocol, Prune, Validate
from tasks.attack.scoring import Referee
from tasks.models import CNN, MLP
from tasks.models.convnet import ConvNet
from tasks.partition.federation import Federation, Groups
from tasks.train.algorithms import FedAvg, FedProx, Parity, Scaffold
from tasks.train.privacy import Local
from tasks.train.settings import Recording, TrainSettings
from tasks.train.transcript import Context, Transcript
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.topk import TopK
from tests.tasks.attack.scenes import honest, meta, scene
from tests.tasks.train.runs import MODEL, SIZES, federation, run

SEED = 3
CASES = [
    pytest.param(FedAvg(epochs=2, batch_size=4), {}, id="plain"),
    pytest.param(FedAvg(batch_size=4, steps=3), {}, id="steps that end within a pass"),
    pytest.param(FedAvg(batch_size=4), {"uplink": (RandomK(density=0.3), Quantize(bits=3))}, id="random codecs"),
    pytest.param(FedAvg(batch_size=0), {"privacy": Local(clip_norm=0.1)}, id="noise on the device"),
    pytest.param(FedProx(batch_size=4, mu=0.5, momentum=0.5), {}, id="proximal, with momentum"),
    pytest.param(Parity(batch_size=4, lr=0.3, lam=5.0), {}, id="a penalty on groups"),
    pytest.param(Scaffold(epochs=2, batch_size=4), {"uplink": (TopK(density=0.5),)}, id="control variates"),
]


def grouped(data: Federation) -> Federation:
    """The same federation, published with groups."""
    np.save(data.path / "groups.npy", np.arange(len(data.y)) % 2)
    np.save(data.path / "test_groups.npy", np.arange(len(data.test_y)) % 2)
    told = data.meta.model_copy(update={"groups": Groups(name="half", values=("a", "b"))})
    (data.path / "meta.json").write_text(told.model_dump_json())
    return Federation.open(data.path)


@pytest.mark.parametrize(("algorithm", "more"), CASES)
def test_sent_the_recorded_broadcast_it_gives_the_recorded_message(tmp_path, algorithm, more):
    data = grouped(federation(tmp_path / "partition"))
    train = TrainSettings(cohort=len(SIZES), algorithm=algorithm, transcript=Recording(clients=8), **more)
    run(data, train, 1, stack=1, recorded=(1,), seed=SEED)
    transcript = Transcript.open(tmp_path / "transcript")
    referee = Referee(Federation.open(tmp_path / "partition"), transcript, SEED, public=20, candidates=20)
    network = models.build(MODEL, data.meta.shape, data.meta.classes, SEED)
    for message in transcript.messages:
        reply = referee.client(message, train).answer(network, algorithm, message.broadcast())
        assert reply.context == message.context
        assert not any("group" in name for name in message.broadcast() | message.payload())
        assert reply.payload.keys() == message.payload().keys()
        for name, value in message.payload().items():
            torch.testing.assert_close(reply.payload[name], value, rtol=1e-5, atol=1e-7)
        for name, value in message.upload(train.uplink).items():
            torch.testing.assert_close(reply.upload[name], value, rtol=1e-5, atol=1e-7)


def client(x, y, work: FedAvg) -> HonestClient:
    context = Context(1, 0, len(y), 1, 1, 0, work.lr, 0)
    return HonestClient(TrainSettings(algorithm=work), 0, context, {"x": x, "y": y}, torch.arange(len(y))[None])


def test_sent_another_model_it_trains_on_that(digits):
    x, y = digits[0][:6], digits[1][:6]
    case = scene(CNN(width=4), x, y).case
    other = tree.map(lambda value: value + 0.1 * torch.randn(value.shape), case.model)
    reply = client(x, y, case.work).answer(case.network, case.work, case.sending(other).broadcast)
    expected = honest(case.network, other, x, y, [[*range(6)]], lr=case.work.lr)
    for name, value in tree.part(reply.upload, "delta").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-7)


def test_a_protocol_of_more_passes_and_other_batches_is_followed(digits):
    x, y = digits[0][:6], digits[1][:6]
    case = scene(MLP(hidden=(8,)), x, y).case
    work = Protocol(epochs=3, batch_size=0).protocol(case.work)
    assert (work.epochs, work.batch_size, work.lr) == (3, 0, case.work.lr)
    reply = client(x, y, case.work).answer(case.network, work, case.broadcast)
    expected = honest(case.network, case.model, x, y, [[*range(6)]] * 3, lr=case.work.lr)
    assert (reply.context.steps, reply.context.epochs, reply.context.batch_size) == (3, 3, 0)
    for name, value in tree.part(reply.upload, "delta").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-7)


def test_a_protocol_that_changes_nothing_is_the_runs_own(digits):
    work = FedProx(mu=0.3)
    assert Protocol().protocol(work) == Protocol(epochs=work.epochs, batch_size=work.batch_size).protocol(work) == work


def test_passes_take_the_place_of_steps_and_steps_that_of_passes():
    assert Protocol(epochs=3).protocol(FedAvg(steps=7)).batches == FedAvg(epochs=3).batches
    assert Protocol(steps=7).protocol(FedAvg(epochs=3)).batches.steps(5) == 7
    with pytest.raises(ValidationError, match="give one of them"):
        Protocol(steps=7, epochs=3)


def offer(case: Case, x, y) -> Offer:
    return Offer(case.network, case.network, case.model, [case.model], x, y)


def test_clients_with_too_few_samples_stay_out(digits):
    x, y = digits[0][:6], digits[1][:6]
    case = scene(MLP(hidden=(8,)), x, y).case
    assert Protocol(min_samples=6).objection(offer(case, x, y)) is None
    assert "6 samples, fewer than 7" in Protocol(min_samples=7).objection(offer(case, x, y))


def test_another_network_brings_what_the_method_sends_along(digits):
    """Control variates of a network that has other parameters start at zero; rate and privacy stay."""
    x, y = digits[0][:6], digits[1][:6]
    plain = scene(MLP(hidden=(8,)), x, y).case
    known = {"lr": torch.tensor(0.05), "privacy/clip_norm": torch.tensor(2.0)}
    control = tree.join(control=tree.map(torch.ones_like, plain.model))
    case = replace(plain, work=Scaffold(), broadcast=tree.join(model=plain.model) | control | known)
    other = models.build(ConvNet(), (1, 8, 8), 10, 1)
    sent = case.sending(other.parameters, other)
    assert sent.network is other and tree.part(sent.broadcast, "control").keys() == other.parameters.keys()
    assert not any(value.any() for value in tree.part(sent.broadcast, "control").values())
    assert float(sent.broadcast["lr"]) == pytest.approx(0.05)
    assert float(sent.broadcast["privacy/clip_norm"]) == 2.0
    assert torch.equal(sent.model["0.weight"], other.parameters["0.weight"])


# Several defences one after another.


PARTS = (Protocol(epochs=2), Prune(share=0.5), Noise(clip_norm=0.1, noise_multiplier=0.5))


@pytest.mark.parametrize("stage", [Design(), *PARTS, Validate()], ids=lambda stage: stage.name)
def test_a_pipeline_of_one_stage_is_that_stage(digits, stage):
    x, y = digits[0][:4], digits[1][:4]
    case, key, whole = scene(MLP(hidden=(8,)), x, y).case, torch.tensor(5), Pipeline(stages=(stage,))
    assert whole.design(MLP()) == stage.design(MLP()) and whole.protocol(FedAvg()) == stage.protocol(FedAvg())
    assert whole.objection(offer(case, x, y)) == stage.objection(offer(case, x, y))
    for mine, theirs in zip(
        whole.protect(case.delta, key).values(), stage.protect(case.delta, key).values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert whole.says == stage.says


def test_the_stages_of_a_pipeline_come_one_after_another(digits):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(CNN(width=4), x, y).case
    whole, key = Pipeline(stages=PARTS), torch.tensor(5)
    assert whole.protocol(FedAvg()).epochs == 2
    sent = whole.protect(case.delta, key)
    quiet = Pipeline(stages=(Prune(share=0.5), Noise(clip_norm=0.1, noise_multiplier=0.0))).protect(case.delta, key)
    kept = tree.vector(quiet) != 0
    assert kept.double().mean() == pytest.approx(0.5, abs=0.01)
    assert float(tree.norm(quiet)) == pytest.approx(0.1, rel=1e-5) and (tree.vector(sent) != 0).all()
    # The order matters: noise that comes before pruning is pruned too.
    other = Pipeline(stages=(Noise(clip_norm=0.1, noise_multiplier=0.5), Prune(share=0.5))).protect(case.delta, key)
    assert (tree.vector(other) != 0).double().mean() == pytest.approx(0.5, abs=0.01)


def test_an_attacker_who_knows_a_pipeline_repeats_its_public_part(digits):
    x, y = digits[0][:4], digits[1][:4]
    defence = Pipeline(stages=(Noise(clip_norm=0.01, noise_multiplier=0.0), Prune(share=0.8)))
    case = scene(CNN(width=4), x, y, defence=defence).case
    assert tree.norm(tree.subtract(case.simulate(x, y), case.delta)) <= 1e-6 * tree.norm(case.delta)


def test_no_defence_and_looking_leave_a_message_as_it_is(digits):
    case = scene(MLP(hidden=(8,)), digits[0][:4], digits[1][:4]).case
    for defence in (NoDefence(), Validate(), Protocol(epochs=5), Design()):
        assert defence.protect(case.delta, torch.tensor(1)) is case.delta


def test_an_attack_on_a_client_that_looks_ends_with_its_reason(digits):
    x, y = digits[0][:4], digits[1][:4]
    case = replace(
        scene(CNN(width=4), x, y, data=meta((1, 8, 8))).case, public=Public(*(part[100:300] for part in digits))
    )
    sent = Imprint(bins=20).tamper(case)
    reason = Validate().objection(Offer(case.network, sent.network, sent.model, [case.model], x, y))
    assert reason == "the network is not the one that was agreed on"
