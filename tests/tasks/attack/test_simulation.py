"""The attacker's simulation of a client is that client, when the samples are right."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tasks import tree
from tasks.attack.defences import NoDefence, Noise, Prune
from tasks.attack.matching import cosine, total_variation, turn
from tasks.models import CNN, MLP
from tasks.models.convnet import ConvNet
from tasks.train.algorithms import FedAvg, FedProx
from tasks.train.privacy import Gaussian, Local
from tasks.train.privacy.clipping import Dim
from tasks.train.uplink import Chain, Clip, DeepGradientCompression, RandomK, TopK
from tasks.train.work import rebased
from tests.tasks.attack.scenes import scene

ORDERS = {
    "one step": [[0, 1, 2, 3, 4]],
    "ragged batches": [[3, 1], [0, 4], [2]],
    "two passes in unlike orders": [[3, 1], [0, 4], [2], [4, 2], [1, 0], [3]],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_the_truth_the_simulated_update_is_the_clients_own(digits, order, momentum):
    x, y = digits[0][:5], digits[1][:5]
    work = FedAvg(lr=0.3, batch_size=len(order[0]), epochs=sum(map(len, order)) // 5, momentum=momentum)
    truth = scene(CNN(width=4), x, y, order=order, work=work)
    simulated = truth.case.simulate(x, y, truth.order)
    assert tree.norm(tree.subtract(simulated, truth.case.delta)) <= 1e-6 * tree.norm(truth.case.delta)


def test_the_presumed_order_uses_every_sample_once_a_pass_in_as_many_steps_as_the_client_did(digits):
    x, y = digits[0][:5], digits[1][:5]
    case = scene(MLP(hidden=(4,)), x, y, order=ORDERS["two passes in unlike orders"]).case
    assert len(case.order) == case.context.steps == 6
    assert torch.cat(case.order[:3]).tolist() == torch.cat(case.order[3:]).tolist() == [0, 1, 2, 3, 4]


def test_a_proximal_client_is_simulated_with_its_pull(digits):
    x, y = digits[0][:4], digits[1][:4]
    pulled = scene(MLP(hidden=(8,)), x, y, work=FedProx(lr=0.5, mu=5.0, batch_size=2)).case
    plain = scene(MLP(hidden=(8,)), x, y, work=FedAvg(lr=0.5, batch_size=2)).case
    order = tuple(torch.tensor(rows) for rows in ([0, 1], [2, 3]))
    first, second = (pulled.simulate(x, y, order[:1]), pulled.simulate(x, y, order))
    at_first = {name: value + first[name] for name, value in pulled.model.items()}
    moved = type(plain)(**{**plain.__dict__, "broadcast": tree.join(model=at_first) | {"lr": torch.tensor(0.5)}})
    # The second step is a plain one from where the first ended, plus lr * mu times the way back to the start.
    expected = tree.add(tree.add(first, moved.simulate(x, y, order[1:])), first, -0.5 * 5.0)
    assert tree.norm(tree.subtract(second, expected)) <= 1e-5 * tree.norm(second)


def test_soft_labels_that_are_certain_are_labels(digits):
    x, y = digits[0][:3], digits[1][:3]
    case = scene(MLP(hidden=(8,)), x, y).case
    hard, soft = case.simulate(x, y), case.simulate(x, torch.nn.functional.one_hot(y, 10).float())
    assert tree.norm(tree.subtract(hard, soft)) <= 1e-6 * tree.norm(hard)


def test_the_cosine_term_is_zero_at_the_truth_whatever_the_scale_of_the_message_and_at_most_two(digits):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(CNN(width=4), x, y).case
    for factor in (1.0, 1e-4, 300.0):
        assert 1 - cosine(case.simulate(x, y), tree.scale(case.delta, factor)) == pytest.approx(0.0, abs=1e-5)
    assert 1 - cosine(case.simulate(x, y), tree.scale(case.delta, -1.0)) == pytest.approx(2.0, abs=1e-5)
    other = cosine(case.simulate(digits[0][4:8], y), case.delta)
    assert other == pytest.approx(
        float(cosine(case.simulate(digits[0][4:8], y), tree.scale(case.delta, 50.0))), abs=1e-5
    )
    assert other < 0.999


def test_total_variation_is_the_mean_absolute_difference_of_neighbours():
    x = torch.rand(2, 3, 4, 5)
    planes = x.reshape(6, 4, 5).tolist()
    down = [abs(a - b) for plane in planes for row, below in pairwise(plane) for a, b in zip(row, below, strict=True)]
    across = [abs(a - b) for plane in planes for row in plane for a, b in pairwise(row)]
    assert float(total_variation(x)) == pytest.approx(sum(down) / len(down) + sum(across) / len(across), rel=1e-5)
    assert float(total_variation(torch.full((1, 1, 3, 3), 0.7))) == 0.0


def test_noise_has_the_deviation_it_promises_and_lies_around_the_clipped_update(digits):
    case = scene(CNN(width=8), digits[0][:4], digits[1][:4]).case
    big = tree.scale(case.delta, 1e3)
    noisy = Noise(clip_norm=0.5, noise_multiplier=2.0).protect(big, torch.tensor(3))
    clipped = Noise(clip_norm=0.5, noise_multiplier=0.0).protect(big, torch.tensor(3))
    assert float(tree.norm(clipped)) == pytest.approx(0.5, rel=1e-5)
    noise = tree.vector(tree.subtract(noisy, clipped))
    assert float(noise.std()) == pytest.approx(1.0, rel=4 / (2 * len(noise)) ** 0.5)
    assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999])
def test_pruning_keeps_the_largest_entries_as_they_are(share):
    delta = {"a": torch.randn(20, 30), "b": torch.randn(50)}
    full, kept = tree.vector(delta), tree.vector(Prune(share=share).protect(delta, torch.tensor(0)))
    stays = kept != 0
    assert torch.equal(kept[stays], full[stays])
    assert stays.sum() == -(-650 * round(1000 * (1 - share)) // 1000)
    assert all(full[~stays].abs() <= kept[stays].abs().min())


@pytest.mark.parametrize("defence", [NoDefence(), Noise(clip_norm=0.01, noise_multiplier=0.0), Prune(share=0.8)])
def test_an_adaptive_attacker_who_has_the_truth_sees_no_difference(digits, defence):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(CNN(width=4), x, y, defence=defence).case
    assert tree.norm(tree.subtract(case.simulate(x, y), case.delta)) <= 1e-6 * tree.norm(case.delta)


WAYS = {
    "largest entries": {"uplink": (TopK(density=0.1),)},
    "largest entries of all": {"uplink": (TopK(density=0.1, scope="upload", dense_below=2),)},
    "random entries": {"uplink": (RandomK(density=0.1),)},
    "random entries, scaled up": {"uplink": (RandomK(density=0.1, unbiased=True, error_feedback=False),)},
    "gradient compression": {"uplink": (DeepGradientCompression(density=0.1, warmup_rounds=0),)},
    "clipped before and after": {"uplink": (Clip(norm=0.01), TopK(density=0.1), Clip(norm=0.001))},
    "clipped by the mechanism": {"privacy": Gaussian(clip_norm=0.01), "uplink": (TopK(density=0.3),)},
    "clipped by tensors": {"privacy": Gaussian(clip_norm=0.01, clipping=Dim())},
    "clipped, without noise": {"privacy": Local(clip_norm=0.01, noise_multiplier=0.0)},
}


@pytest.mark.parametrize("model", [ConvNet(), MLP(hidden=(16,))], ids=lambda model: model.name)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_is_public_of_the_runs_own_codecs_is_repeated(digits, model, way):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(model, x, y, **way).case
    assert tree.norm(tree.subtract(case.simulate(x, y), case.delta)) <= 1e-6 * tree.norm(case.delta)
    assert turn(case, x, y, case.order) == pytest.approx(0.0, abs=1e-6)


def test_of_what_did_not_arrive_a_simulation_says_nothing_and_of_the_rest_all(digits):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(ConvNet(), x, y, uplink=(TopK(density=0.1, dense_below=2),)).case
    for name, there in case.arrived.items():
        assert torch.equal(there, case.delta[name] != 0 if there.dim() > 1 else torch.ones_like(there))
    other = case.simulate(digits[0][4:8], y)
    assert not any(other[name][~there].any() for name, there in case.arrived.items())
    assert all(there.all() for there in scene(ConvNet(), x, y).case.arrived.values())


@pytest.mark.parametrize("exact", [False, True])
def test_a_codec_on_the_change_from_an_older_model_leaves_out_what_it_left_out_there(digits, exact):
    """What did not arrive is where the receivers had it, however far the sender's model has moved since."""
    x, y = digits[0][:4], digits[1][:4]
    case, change = scene(ConvNet(), x, y, uplink=(TopK(density=0.1),)).case, scene(ConvNet(), x, y).case.delta
    older = tree.map(lambda value: value + 0.01 * torch.randn(value.shape), case.model)
    broadcast = case.broadcast | tree.join(reference=older)
    upload = rebased(tree.join(delta=change), broadcast, 1)
    chain = Chain(case.uplink, upload)
    sent = chain.decode(chain.encode(upload, chain.memory(), torch.tensor(0))[0])
    heard = rebased(sent, broadcast, -1)
    case = replace(case, broadcast=broadcast, upload=heard, delta=tree.part(heard, "delta"))
    case, x = (case.precise(), x.double()) if exact else (case, x)
    assert tree.norm(tree.subtract(case.simulate(x, y), case.delta)) <= 1e-5 * tree.norm(case.delta)
    for name, there in case.arrived.items():
        assert torch.equal(there, sent[f"delta/{name}"] != 0)
