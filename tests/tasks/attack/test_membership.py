"""Membership inference, where it must fail and where it must not."""

import math

import pytest
import torch
from torch.func import grad

from tasks import tree
from tasks.attack.attacks import Membership
from tasks.attack.attacks.membership import _confidence, _halves, likelihood_ratio
from tasks.attack.case import Release, View
from tasks.attack.scoring import Curve, roc
from tasks.models import MLP, build
from tests.tasks.attack.scenes import meta

CANDIDATES, OWN, MODEL = 300, 100, MLP()


def attacked(digits, seed: int, steps: int, attack: Membership) -> dict[str, Curve]:
    """The curves of an attack on a model that ``steps`` of SGD fitted to half of the candidates."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randperm(len(digits[1]), generator=generator)
    x, y = digits[0][mixed], digits[1][mixed]
    network = build(MODEL, (1, 8, 8), 10, seed)
    params, moments = network.parameters, tree.zeros_like(network.parameters)
    members = torch.randperm(2 * CANDIDATES, generator=generator) < CANDIDATES
    inside = torch.nonzero(members)[:, 0]
    slope = grad(lambda params, x, y: network.losses(params, x, y).mean())
    for _ in range(steps):
        rows = inside[torch.randperm(len(inside), generator=generator)[:32]]
        moments = tree.add(slope(params, x[rows], y[rows]), moments, 0.9)
        params = tree.add(params, moments, -0.05)
    asked, own = slice(2 * CANDIDATES), slice(2 * CANDIDATES, 2 * CANDIDATES + OWN)
    release = Release(network, params, meta((1, 8, 8)), x[asked], y[asked], x[own], y[own], seed)
    return {guess.rule: roc(guess.scores, members) for guess in attack.run(View((), release))}


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_never_saw_the_candidates_tells_nothing(digits, seed):
    deviation = math.sqrt((2 * CANDIDATES + 1) / (12 * CANDIDATES**2))
    for curve in attacked(digits, seed, 0, Membership()).values():
        assert abs(curve.auc - 0.5) < 4 * deviation


def test_an_overfitted_model_gives_its_members_away_and_lira_is_better_at_few_false_alarms(digits):
    found = [attacked(digits, seed, 300, Membership(epochs=60)) for seed in range(3)]
    lira, threshold = ([curves[rule] for curves in found] for rule in ("lira", "loss_threshold"))
    assert sum(curve.auc for curve in lira) / 3 > 0.6
    for shadowed, plain in zip(lira, threshold, strict=True):
        assert shadowed.auc > plain.auc
        assert shadowed.at(0.01) > 2 * plain.at(0.01) + 0.02
    # Of 300 others, a rate of 0.1 % allows none: one sample decides, so the seeds are taken together.
    assert sum(curve.at(0.001) for curve in lira) > sum(curve.at(0.001) for curve in threshold) + 0.03


def test_the_likelihood_ratio_is_that_of_two_normal_distributions_with_shared_variances():
    shadows = torch.tensor([[3.0, 1.0], [5.0, 2.0], [0.0, -1.0], [2.0, 0.0]])
    seen = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    own = torch.tensor([2.5, 0.5])
    inside, outside = [[3.0, 5.0], [2.0, -1.0]], [[0.0, 2.0], [1.0, 0.0]]

    def parts(groups):
        means = [sum(g) / 2 for g in groups]
        spread = sum((v - m) ** 2 for g, m in zip(groups, means, strict=True) for v in g) / 2
        return means, spread

    (mean_in, var_in), (mean_out, var_out) = parts(inside), parts(outside)
    for i in range(2):
        log_in = -((own[i] - mean_in[i]) ** 2) / (2 * var_in) - 0.5 * math.log(var_in)
        log_out = -((own[i] - mean_out[i]) ** 2) / (2 * var_out) - 0.5 * math.log(var_out)
        online, offline = (likelihood_ratio(own, shadows, seen, mode)[i] for mode in ("online", "offline"))
        assert float(online) == pytest.approx(float(log_in - log_out), abs=1e-5)
        assert float(offline) == pytest.approx(float((own[i] - mean_out[i]) / math.sqrt(var_out)), abs=1e-5)


def test_every_sample_is_in_exactly_half_of_the_shadows_halves():
    halves = _halves(11, 6, 0)
    assert halves.shape == (6, 5)
    counts = torch.bincount(halves.flatten(), minlength=11)
    # Of an odd number of samples, one is left out of each pair of halves.
    assert counts.max() <= 3 and counts.sum() == 30
    assert all(set(a.tolist()).isdisjoint(b.tolist()) for a, b in zip(halves[:3], halves[3:], strict=True))


def test_the_confidence_is_the_log_odds_of_the_true_class_and_does_not_saturate(digits):
    network = build(MODEL, (1, 8, 8), 10, 0)
    x, y = digits[0][:50], digits[1][:50]
    p = network.apply(network.parameters, x).double().softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(_confidence(network, network.parameters, x, y), torch.log(p / (1 - p)), atol=1e-5)
    sure = tree.scale(network.parameters, 100.0)
    assert torch.isfinite(_confidence(network, sure, x, y)).all()


def test_without_shadows_there_is_the_loss_threshold_alone(digits):
    assert list(attacked(digits, 0, 5, Membership(shadows=0))) == ["loss_threshold"]
