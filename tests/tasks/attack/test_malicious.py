"""Servers that send models of their own making: what theory says they read, and that a client who looks sees it."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import models, tree
from tasks.attack import layers
from tasks.attack.attacks import Fishing, Imprint, InvertingGradients, TrapWeights
from tasks.attack.attacks.fishing import pulling
from tasks.attack.attacks.imprint import apart
from tasks.attack.case import Public, View
from tasks.attack.defences import Offer, Validate
from tasks.attack.defences.validate import mirrored, parallel
from tasks.attack.guesses import Declined, NotApplicable, Reconstruction
from tasks.attack.scoring import EXACT, match, psnr, square_errors
from tasks.models import CNN, MLP, Logistic, ResNet
from tasks.models.convnet import ConvNet
from tasks.train.algorithms import FedAvg
from tests.tasks.attack.scenes import honest, meta, scene


def told(case, x, y, precise: bool = False):
    """The case once its client has answered: one step on all of ``x``."""
    case = case.precise() if precise else case
    x = x.double() if precise else x
    return replace(case, delta=honest(case.network, case.model, x, y, [[*range(len(y))]], lr=case.context.lr))


def situation(model, digits, first: int, samples: int, seed: int = 0, budget: int = 600, **more):
    """The case of a client with so many samples, an attacker with a thousand others; and those samples."""
    x, y = (part[first : first + samples] for part in digits)
    case = scene(model, x, y, seed=seed, budget=budget, **more).case
    return replace(case, public=Public(digits[0][:1000], digits[1][:1000])), x, y


def strike(attack, case, x, y, asked: list | None = None):
    def ask(sent):
        if asked is not None:
            asked.append(sent)
        return told(sent, x, y)

    (guess,) = attack.run(View((case,), None, ask))
    return guess


def quality(guess, x):
    rows, found = match(x, guess.x)
    return psnr(square_errors(x[rows], guess.x[found]), 1.0)


# Bins: Robbing the Fed.


def alone(case, sent, x) -> list[int]:
    """The samples that no other one shares a bin with, found by sorting."""
    weight, bias = sent.model["rows.weight"].double(), sent.model["rows.bias"].double()
    passed = (x.flatten(1).double() @ weight.T + bias > 0).sum(1).tolist()
    return [i for i, bin_ in enumerate(passed) if passed.count(bin_) == 1]


@pytest.mark.parametrize("bins", [10, 100])
@pytest.mark.parametrize("model", [CNN(), Logistic()], ids=lambda model: model.name)
def test_samples_alone_in_their_bins_are_read_out_exactly(digits, model, bins):
    case, x, y = situation(model, digits, 1100, 16)
    attack = Imprint(bins=bins)
    sent = attack.tamper(case)
    single = alone(case, sent, x)
    assert 2 <= len(single) < 16 or bins == 100
    rows, _ = apart(told(sent, x, y, precise=True).delta)
    for i in single:
        assert (rows - x[i].flatten()).abs().amax(1).min() < 1e-6
    # In the floating point of a real message, through the interface of the stage.
    guess = strike(attack, case, x, y)
    assert int((quality(guess, x) > EXACT).sum()) >= len(single) - 1


def test_two_in_a_bin_give_their_mean_weighted_by_their_slopes(digits):
    case, x, y = situation(ConvNet(), digits, 1100, 2)
    sent = Imprint(bins=2, direction="mean").tamper(case).precise()
    # Both beyond the first threshold alone.
    sent.broadcast["model/rows.bias"][1] = -1e3
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    outputs = sent.network.module.network
    loss = models.Network(outputs).losses(
        {name.removeprefix("network."): value for name, value in sent.model.items() if name.startswith("network.")},
        (x.double() + sent.network.module.mix(torch.zeros(1, 2)).detach().double().reshape(1, 1, 1, 1))
        + shift.reshape(2, 1, 1, 1)
        + moved(sent, x.double()),
        y,
    )
    slopes = torch.autograd.grad(loss.mean(), shift)[0]
    rows, _ = apart(told(sent, x.double(), y).delta)
    expected = (slopes[:, None] * x.flatten(1).double()).sum(0) / slopes.sum()
    assert len(rows) == 1 and torch.allclose(rows[0], expected, atol=1e-9)


def moved(sent, x):
    """How far the bins move each sample, ``[samples, 1, 1, 1]``."""
    passed = torch.relu(x.flatten(1) @ sent.model["rows.weight"].T + sent.model["rows.bias"])
    return (passed @ sent.model["mix.weight"].T).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("bins", "samples"), [(20, 8), (60, 16)])
def test_as_many_are_alone_as_bins_of_equal_mass_promise(bins, samples):
    """B (1 - 1/K)^(B - 1), for samples of the law that the thresholds are quantiles of."""
    generator = torch.Generator().manual_seed(5)
    data = meta((6,), None)
    base = scene(Logistic(), torch.randn(samples, 6, generator=generator), torch.arange(samples) % 10, data=data).case
    base = replace(base, public=Public(torch.randn(4000, 6, generator=generator), torch.zeros(4000, dtype=torch.int64)))
    sent = Imprint(bins=bins, quantiles="normal").tamper(base)
    counts = []
    for _ in range(60):
        x, y = torch.randn(samples, 6, generator=generator), torch.randint(10, (samples,), generator=generator)
        rows, _ = apart(told(sent, x, y, precise=True).delta)
        counts.append(sum(float((rows - sample.double()).abs().amax(1).min()) < 1e-6 for sample in x))
    counts = torch.tensor(counts, dtype=torch.float64)
    promised = samples * (1 - 1 / bins) ** (samples - 1)
    assert float(counts.mean()) == pytest.approx(promised, abs=3 * float(counts.std()) / len(counts) ** 0.5)


def test_more_bins_keep_more_of_a_large_batch_apart(digits):
    found = {}
    for bins, first in itertools.product((100, 1000), (1000, 1100, 1200)):
        case, x, y = situation(CNN(), digits, first, 64, seed=first)
        found[bins, first] = int((quality(strike(Imprint(bins=bins), case, x, y), x) > EXACT).sum())
    many, few = (sum(found[bins, first] for first in (1000, 1100, 1200)) / 3 for bins in (1000, 100))
    for bins, mean in ((1000, many), (100, few)):
        assert mean == pytest.approx(64 * (1 - 1 / bins) ** 63, rel=0.15)
    assert many >= 1.5 * few


def test_the_network_behind_the_bins_hardly_notices_them(digits):
    case, x, _ = situation(CNN(), digits, 1000, 64)
    sent = Imprint().tamper(case)
    before, after = case.network.apply(case.model, x), sent.network.apply(sent.model, x)
    assert (before - after).abs().mean() < 0.1 * before.std()


# Trap weights.


def test_a_row_of_trap_weights_is_half_the_negative_of_the_other_half_scaled_down(digits):
    case, *_ = situation(MLP(hidden=(32,)), digits, 1000, 8)
    weight = TrapWeights(scale=0.95).tamper(case).model["1.weight"]
    for row in weight:
        above, below = row[row > 0].sort().values, (-row[row < 0]).sort().values
        assert len(above) == len(below) == 32
        assert torch.allclose(above, 0.95 * below)


def test_trap_weights_keep_samples_apart_that_an_honest_layer_mixes(digits):
    case, x, y = situation(MLP(hidden=(256,)), digits, 1000, 16)
    fires = {}
    for name, sent in (("honest", case), ("trap", TrapWeights().tamper(case))):
        layer = layers.first(sent, sent.model)
        on = x.flatten(1) @ layer.weight.T + layer.bias > 0
        fires[name] = int((on.sum(0) == 1).sum())
    assert fires["trap"] > 2 * fires["honest"]
    guess = strike(TrapWeights(), case, x, y)
    assert int((quality(guess, x) > EXACT).sum()) >= 8


def test_trap_weights_need_a_linear_first_layer(digits):
    case, x, y = situation(CNN(width=4), digits, 1000, 2)
    guess = strike(TrapWeights(), case, x, y)
    assert isinstance(guess, NotApplicable) and "Conv2d" in guess.reason


# Fishing.


def apart_from_last(case, x, y):
    """What all layers but the last say of a batch, as one vector."""
    answered = told(case, x, y, precise=True)
    return tree.vector(layers.last(answered, answered.delta).without(answered.delta))


def test_the_larger_the_bias_the_more_of_the_gradient_is_the_targets(digits):
    case, x, y = situation(ConvNet(), digits, 1300, 32)
    counts = torch.bincount(y, minlength=10)
    target = int(torch.where(counts == 1)[0][0])
    (row,) = torch.where(y == target)[0]
    cosines, ratios = [], []
    for bias in (0.0, 1.0, 3.0, 6.0, 10.0, 1000.0):
        sent = Fishing(bias=bias).tamper(case, target)
        batch, own = apart_from_last(sent, x, y), apart_from_last(sent, x[row : row + 1], y[row : row + 1])
        cosines.append(float(torch.cosine_similarity(batch, own, 0)))
        ratios.append(32 * float(batch.norm() / own.norm()))
    assert cosines == sorted(cosines) and cosines[0] < 0.9
    assert cosines[-1] == pytest.approx(1.0, abs=1e-9) and ratios[-1] == pytest.approx(1.0, abs=1e-6)


def test_the_bias_tells_how_many_the_target_class_has(digits):
    case, x, y = situation(CNN(width=4), digits, 1000, 20)
    for target in range(10):
        assert pulling(told(Fishing().tamper(case, target), x, y), target) == int((y == target).sum())


def test_a_cut_singles_out_one_of_many_whatever_its_class(digits):
    case, x, y = situation(ConvNet(), digits, 1000, 32)
    target = int(torch.bincount(y, minlength=10).argmax())
    held = int((y == target).sum())
    assert held > 1
    asked = []

    def ask(sent):
        asked.append(sent)
        return told(sent, x, y, precise=True)

    closed, left = Fishing()._single(case, ask, target, held)
    assert len(asked) <= 1 + Fishing().queries
    own = [apart_from_last(asked[-1], x[i : i + 1], y[i : i + 1]) for i in range(32)]
    baseline = [apart_from_last(asked[0], x[i : i + 1], y[i : i + 1]) for i in range(32)]
    changes = torch.stack([b - a for a, b in zip(own, baseline, strict=True)])
    moved = changes.norm(dim=1)
    assert int((moved > 1e-6 * moved.max()).sum()) == 1
    one = changes[moved.argmax()]
    assert float(torch.cosine_similarity(tree.vector(left), one, 0)) == pytest.approx(1.0, abs=1e-9)
    # A simulation with the true sample points the same way.
    i = int(moved.argmax())
    simulated = replace(closed, delta=left).simulate(
        x[i : i + 1].double(), torch.tensor([target]), (torch.tensor([0]),)
    )
    assert float(torch.cosine_similarity(tree.vector(simulated), one, 0)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("first", [1100, 1200])
def test_fishing_reads_one_of_many_where_inversion_reads_none(digits, first):
    """Of 16: one class is there once in the first batch, every class there is at least twice in the second."""
    case, x, y = situation(MLP(), digits, first, 16, budget=800, told=True)
    caught = quality(strike(Fishing(), case, x, y), x)
    (inverted,) = InvertingGradients(labels="given").run(View((case,), None))
    assert caught.max() > 35.0
    assert caught.max() > quality(inverted, x).max() + 10.0


# The client that looks.


def look(case, sent, x, y, known=()):
    return Validate().objection(Offer(case.network, sent.network, sent.model, [case.model, *known], x, y))


MODELS = [MLP(), CNN(), ConvNet(), Logistic(), ResNet(width=4)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_made_for_an_attack_is_refused(digits, model):
    for seed, samples in itertools.product(range(3), (1, 8)):
        case, x, y = situation(model, digits, 1000 + 20 * seed, samples, seed=seed)
        for attack in (
            Imprint(bins=50),
            TrapWeights(),
            TrapWeights(scale=0.95, sigma=0.01),
            Fishing(),
            Fishing(bias=50.0),
        ):
            if attack.obstacle(case):
                continue
            asked = []

            def ask(sent, asked=asked, x=x, y=y, case=case):
                asked.append(reason := look(case, sent, x, y))
                return replace(sent, declined=reason) if reason else told(sent, x, y)

            (guess,) = attack.run(View((case,), None, ask))
            assert isinstance(guess, Declined) and asked == [guess.reason], attack


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_no_model_of_an_honest_training_is_refused(digits, model, lr):
    """Sixty rounds of it, each offered to a client of its own, among them some with a single sample of a rare class."""
    case, *_ = situation(model, digits, 1000, 4, seed=int(10 * lr))
    params, generator = case.model, torch.Generator().manual_seed(0)
    for round_ in range(60):
        x, y = digits[0][1000 + round_ :][: 1 + round_ % 7], digits[1][1000 + round_ :][: 1 + round_ % 7]
        assert look(case, case.sending(params), x, y) is None, round_
        rows = torch.randint(900, (32,), generator=generator)
        params = tree.add(params, honest(case.network, params, digits[0][rows], digits[1][rows], [[*range(32)]], lr=lr))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.floats(0.0, 1.0))
def test_a_model_is_accepted_after_any_step_of_bounded_length(digits, seed, norm):
    case, x, y = situation(MLP(), digits, 1000, 8)
    step = {name: torch.randn(v.shape, generator=torch.Generator().manual_seed(seed)) for name, v in case.model.items()}
    sent = case.sending(tree.add(case.model, step, norm / float(tree.norm(step))))
    assert look(case, sent, x, y) is None


def test_rows_along_one_direction_and_hollow_last_layers_are_refused(digits):
    case, x, y = situation(MLP(), digits, 1000, 8)
    direction, sizes = torch.randn(64), torch.rand(64, 1) + 0.1
    flat = case.sending(case.model | {"1.weight": sizes * direction})
    assert "parallel" in look(case, flat, x, y)
    last = case.model["3.weight"].clone()
    last[1:] = 0.0
    assert "zeros" in look(case, case.sending(case.model | {"3.weight": last}), x, y)
    loud = case.sending(case.model | {"3.weight": 30.0 * case.model["3.weight"].sign()})
    assert "largest entry" in look(case, loud, x, y)
    wild = case.sending(case.model | {"1.weight": 1e4 * case.model["1.weight"]})
    assert "own samples" in look(case, wild, x, y)
    assert "not finite" in look(case, case.sending(case.model | {"3.bias": torch.full((10,), torch.nan)}), x, y)


def test_what_a_model_seen_before_had_is_no_reason_to_refuse(digits):
    """A network that was always pruned, say."""
    case, x, y = situation(MLP(), digits, 1000, 8)
    hollow = case.model | {"3.weight": case.model["3.weight"] * (torch.arange(64) % 8 == 0)}
    assert "zeros" in look(case, case.sending(hollow), x, y)
    assert look(case, case.sending(hollow), x, y, known=[hollow]) is None


def test_parallel_and_mirrored_rows_are_counted():
    a, b = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    assert parallel(torch.stack([a, 2 * a, b, -b])) == 0.5
    half = a[:6].abs() + 0.1
    rows = torch.stack([torch.cat([half, -0.5 * half.flip(0)]), a, torch.cat([half, -half.square()])])
    assert mirrored(rows) == pytest.approx(1 / 3)


def test_a_server_that_is_refused_at_once_gets_nothing(digits):
    case, *_ = situation(CNN(width=4), digits, 1000, 2)
    refused = replace(case, declined="it has 2 samples, fewer than 5")
    for attack in (Imprint(), InvertingGradients(), Fishing()):
        (guess,) = attack.run(View((refused,), None, None))
        assert isinstance(guess, Declined) and guess.reason == "it has 2 samples, fewer than 5"


def test_what_was_asked_is_what_is_told_apart_from_the_recorded_message(digits):
    """A malicious server reads the answer, not the recorded message: with that replaced by noise it reads the same."""
    case, x, y = situation(CNN(width=4), digits, 1000, 4)
    other = replace(case, delta=tree.map(torch.randn_like, case.delta))
    first, second = (strike(Imprint(), each, x, y) for each in (case, other))
    assert isinstance(first, Reconstruction) and torch.equal(first.x, second.x)


def test_several_local_steps_move_the_bins(digits):
    """Exact after one step; after five the read-out is an approximation, as the layer moves while it is filled."""
    case, x, y = situation(CNN(), digits, 1000, 8, work=FedAvg(lr=0.1, batch_size=8))
    sent = Imprint().tamper(case)
    found = {}
    for steps in (1, 5):
        delta = honest(sent.network, sent.model, x, y, [[*range(8)]] * steps, lr=0.1)
        answered = replace(sent, delta=delta, context=replace(sent.context, steps=steps))
        found[steps] = float(quality(Imprint().guess(answered), x).mean())
    assert found[1] > EXACT and found[5] < found[1] - 10.0
