import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tasks.aggregate import evaluation
from tasks.aggregate.evaluation import Tally, chosen, distribution, on_clients, on_test
from tasks.aggregate.personalise.finetune import FineTune
from tasks.aggregate.settings import Evaluate
from tasks.aggregate.stage import gain, judged_on, spread
from tasks.artifacts import read_tree
from tasks.models import build
from tasks.models.architectures import Logistic


@pytest.fixture
def network(federation):
    return build(Logistic(), federation.meta.shape, federation.meta.classes, 0)


@pytest.fixture
def model(trained):
    return read_tree(trained / "model.safetensors")


def scored(network, model, federation, positions):
    """Mean loss and accuracy of one client, the plain way."""
    outputs = network.apply(model, torch.from_numpy(federation.x[positions]))
    y = torch.from_numpy(federation.y[positions])
    losses = cross_entropy(outputs, y, reduction="none").double()
    return losses.mean().item(), (outputs.argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("at_once", [1, 37, 8192])
def test_every_client_is_scored_on_its_own_samples_however_they_are_read(
    network, model, federation, monkeypatch, at_once
):
    monkeypatch.setattr(evaluation, "SAMPLES_AT_ONCE", at_once)
    clients = np.array([0, 3, 4, 11])
    scores = on_clients(network, model, federation, clients)
    for i, client in enumerate(clients):
        for part, positions in ((scores.train, federation.train), (scores.validation, federation.validation)):
            loss, accuracy = scored(network, model, federation, positions(client))
            assert part.samples[i] == len(positions(client))
            assert part.loss[i] == pytest.approx(loss, rel=1e-5)
            assert part.accuracy[i] == pytest.approx(accuracy)


def test_the_global_accuracy_is_the_weighted_mean_over_the_classes_and_over_the_groups(network, model, federation):
    result = on_test(network, model, federation)
    for parts in (result["classes"], result["groups"]["values"]):
        assert sum(p["samples"] for p in parts) == result["samples"] == 60
        assert sum(p["samples"] * p["accuracy"] for p in parts) / 60 == pytest.approx(result["accuracy"])
        assert sum(p["samples"] * p["loss"] for p in parts) / 60 == pytest.approx(result["loss"])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_figures_of_a_distribution_are_those_of_their_definitions(values):
    found, x = distribution(np.array(values), worst="low"), np.sort(values)
    n, tenth = len(x), math.ceil(len(x) / 10)
    assert found["worst_decile"] == pytest.approx(x[:tenth].mean())
    assert found["best_decile"] == pytest.approx(x[-tenth:].mean())
    assert (found["minimum"], found["maximum"]) == (x[0], x[-1])
    if x.sum() > 1e-100:
        pairs = np.abs(x[:, None] - x[None]).sum() / (2 * n**2 * x.mean())
        assert found["gini"] == pytest.approx(pairs, abs=1e-9)
        assert 1 / n - 1e-9 <= found["jain"] <= 1 + 1e-9


def test_equal_clients_are_fair_and_a_monopoly_is_not():
    assert distribution(np.full(8, 0.4), "low")["gini"] == pytest.approx(0)
    assert distribution(np.full(8, 0.4), "low")["jain"] == pytest.approx(1)
    monopoly = distribution(np.eye(8)[0], "low")
    assert (monopoly["gini"], monopoly["jain"]) == (pytest.approx(7 / 8), pytest.approx(1 / 8))
    assert distribution(np.arange(20.0), "high")["worst_decile"] == 18.5


def test_a_diverged_model_has_no_figures_rather_than_wrong_ones():
    assert set(distribution(np.array([1.0, np.inf]), "high").values()) == {None}
    assert set(distribution(np.array([]), "low").values()) == {None}


def test_of_too_many_clients_some_are_drawn_without_replacement_and_the_same_ones_each_time():
    drawn = chosen(1000, 50, 3)
    assert len(set(drawn)) == 50
    assert (drawn == np.sort(drawn)).all()
    assert (drawn == chosen(1000, 50, 3)).all()
    assert (drawn != chosen(1000, 50, 4)).any()
    assert (chosen(5, 50, 3) == np.arange(5)).all()


def test_clients_are_compared_on_held_out_samples_where_half_of_them_have_enough(network, model, federation):
    scores = on_clients(network, model, federation, np.arange(federation.clients))
    # Client c holds out c + 1 samples.
    assert judged_on(Evaluate(min_samples=6), scores)[0] == "validation"
    assert judged_on(Evaluate(min_samples=8), scores)[0] == "all"
    assert judged_on(Evaluate(min_samples=12, part="validation"), scores)[0] == "validation"
    found = spread(scores.validation, 6)
    assert (found["clients"], found["left_out"]) == (7, 5)
    assert found["samples"] == sum(range(6, 13))


def plain_finetune(network, model, federation, client, method):
    params = {name: value.clone().requires_grad_() for name, value in model.items()}
    for batch in method.order(federation.train(client), 7, client):
        at = batch[batch >= 0]
        loss = network.losses(params, torch.from_numpy(federation.x[at]), torch.from_numpy(federation.y[at])).mean()
        gradients = torch.autograd.grad(loss, list(params.values()))
        moved = zip(params.items(), gradients, strict=True)
        params = {name: (value - method.lr * g).detach().requires_grad_() for (name, value), g in moved}
    return params


def test_fine_tuning_many_clients_as_one_stack_is_fine_tuning_each(network, model, federation):
    method, clients = FineTune(lr=0.3, epochs=2, batch_size=4), np.arange(12)
    seen = []
    for group, models in method.adapt(network, model, federation, clients, 7):
        for i, client in enumerate(group):
            alone = plain_finetune(network, model, federation, int(client), method)
            for name, value in alone.items():
                torch.testing.assert_close(models[name][i], value.detach(), rtol=1e-5, atol=1e-6)
            seen.append(int(client))
    assert sorted(seen) == list(range(12))


def test_each_pass_uses_every_training_sample_once(federation):
    order = FineTune(epochs=3, batch_size=5).order(federation.train(10), 0, 10)
    used, counts = np.unique(order[order >= 0], return_counts=True)
    assert (used == np.sort(federation.train(10))).all()
    assert (counts == 3).all()


def test_fine_tuning_with_rate_0_changes_no_score_and_a_real_rate_lowers_the_training_loss(network, model, federation):
    clients = np.arange(12)
    before = on_clients(network, model, federation, clients)
    still = FineTune(lr=0.0).adapt(network, model, federation, clients, 0)
    own = evaluation.with_own_models(network, still, federation, clients)
    np.testing.assert_allclose(own.loss, before.validation.loss, rtol=1e-6)
    found = gain(before.validation, own, 1)
    assert (found["improved"], found["worsened"], found["clients"]) == (0, 0, 12)
    for group, models in FineTune(lr=0.5, epochs=3).adapt(network, model, federation, clients, 0):
        for i, client in enumerate(group):
            tuned = {name: value[i] for name, value in models.items()}
            after = scored(network, tuned, federation, federation.train(client))[0]
            assert after < scored(network, model, federation, federation.train(client))[0]


def test_a_client_without_a_sample_has_no_accuracy_rather_than_zero():
    tally = Tally(np.array([0, 2]), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert np.isnan(tally.accuracy[0])
    assert tally.accuracy[1] == 0.5
