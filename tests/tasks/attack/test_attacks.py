"""What each attack on a message gets out of it, where theory says what it must."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import tree
from tasks.attack import label_leak, layers
from tasks.attack.attacks import DLG, IDLG, InvertingGradients, LabelRecovery, ReadOut
from tasks.attack.case import View
from tasks.attack.defences import Noise
from tasks.attack.guesses import NotApplicable
from tasks.attack.scoring import match, psnr, square_errors
from tasks.models import CNN, MLP, Custom, Logistic
from tasks.models.architectures import Transformer
from tasks.train.algorithms import FedAvg
from tests.tasks.attack.scenes import meta, scene


def only(attack, case):
    """The one guess of ``attack`` on ``case``, through the interface that the stage uses."""
    (guess,) = attack.run(View((case,), None))
    return guess


def quality(guess, x):
    """PSNR of each sample of ``x`` against what was matched to it."""
    rows, found = match(x, guess.x)
    return psnr(square_errors(x[rows], guess.x[found]), 1.0)


# The closed-form read-out of a linear first layer.


@pytest.mark.parametrize("model", [Logistic(), MLP(), MLP(activation="tanh", hidden=(32, 16))], ids=repr)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_sample_is_read_out_of_a_linear_first_layer_exactly(digits, model, steps):
    x, y = digits[0][:1], digits[1][:1]
    case = scene(model, x, y, order=[[0]] * steps).case
    guess = only(ReadOut(), case)
    assert (guess.x - x).abs().max() < 1e-5
    assert guess.evaluations == 0


def test_every_unit_that_one_sample_excites_gives_it_away(digits):
    """Through a linear layer with a bias and anything behind it: x = dW_j / db_j for every active j."""
    for seed, activation in enumerate(("relu", "leaky_relu", "gelu", "tanh", "sigmoid")):
        x, y = digits[0][seed : seed + 1], digits[1][seed : seed + 1]
        case = scene(MLP(hidden=(40, 16), activation=activation), x, y, seed=seed).case.precise()
        layer = layers.first(case, case.simulate(x.double(), y))
        active = layer.bias != 0
        assert active.sum() >= 5
        rows = layer.weight[active] / layer.bias[active, None]
        assert (rows - x.double().flatten(1)).abs().max() < 1e-6


def test_samples_of_a_batch_that_excite_units_of_their_own_are_read_out_exactly(digits):
    """Rows of the first layer that are on for one sample alone, by construction: every unit looks at one sample."""
    x, y = digits[0][:4], digits[1][:4]
    base = scene(MLP(hidden=(12,)), x, y).case
    flat = x.flatten(1)
    # Unit u fires on sample u mod 4 alone: w_u . x = 1 there and -1 on the others.
    wanted = 2.0 * torch.eye(4).repeat(3, 1) - 1.0
    weight = (torch.linalg.pinv(flat.double()) @ wanted.T.double()).T.float()
    model = base.model | {"1.weight": weight, "1.bias": torch.zeros(12)}
    case = replace(base, broadcast=tree.join(model=model) | {"lr": torch.tensor(0.1)})
    case = replace(case, delta=case.simulate(x, y))
    guess = only(ReadOut(), case)
    assert len(guess.x) == 4
    assert quality(guess, x).min() > 75.0
    rows, found = match(x, guess.x)
    assert (guess.x[found] - x[rows]).abs().max() < 1e-4


def test_rows_that_agree_are_one_candidate():
    a, b = torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.2])
    bias = torch.tensor([1.0, -2.0, 0.5, 0.0])
    weight = torch.stack([a * 1.0, a * -2.0, b * 0.5, torch.zeros(2)])
    rows, told = layers.candidates(layers.Linear(weight, bias), 1e-6)
    assert torch.allclose(rows, torch.stack([a, b]).double()) and told.tolist() == [2, 1]


def test_read_out_says_why_it_has_no_hold_on_a_convolution(digits):
    guess = only(ReadOut(), scene(CNN(width=4), digits[0][:2], digits[1][:2]).case)
    assert isinstance(guess, NotApplicable) and "Conv2d" in guess.reason


class Squashed(torch.nn.Module):
    """Its first linear layer sees a transformed sample."""

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = torch.nn.Linear(torch.Size(shape).numel(), classes)

    def forward(self, x):
        return self.layer(torch.tanh(3 * x.flatten(1)))


def test_read_out_says_so_where_the_linear_layer_does_not_see_the_sample(digits):
    model = Custom(path="tests.tasks.attack.test_attacks:Squashed")
    guess = only(ReadOut(), scene(model, digits[0][:1], digits[1][:1]).case)
    assert isinstance(guess, NotApplicable) and "does not see the sample" in guess.reason


# Labels.


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    label=st.integers(0, 9),
    activation=st.sampled_from(["relu", "tanh", "gelu", "sigmoid", "leaky_relu"]),
    steps=st.integers(1, 3),
)
def test_the_label_of_one_sample_is_exact_on_random_networks(seed, label, activation, steps):
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    model = MLP(hidden=(16, 8), activation=activation)
    case = scene(model, x, torch.tensor([label]), order=[[0]] * steps, seed=seed).case
    assert label_leak.labels(case).tolist() == [label]


def test_the_one_negative_entry_is_the_label_on_a_thousand_random_networks():
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        w_1, w_2, b = (torch.randn(shape, generator=generator) for shape in ((8, 5), (10, 8), (10,)))
        x, label = torch.randn(5, generator=generator), int(torch.randint(10, (), generator=generator))
        b.requires_grad_()
        loss = torch.nn.functional.cross_entropy(w_2 @ torch.relu(w_1 @ x) + b, torch.tensor(label))
        (slope,) = torch.autograd.grad(loss, b)
        assert torch.where(slope < 0)[0].tolist() == [label] or float(slope[label]) == 0.0


@pytest.mark.parametrize("samples", [2, 5, 16])
def test_the_labels_of_a_batch_are_exact_on_a_fresh_network(digits, samples):
    for start in range(0, 100, 20):
        x, y = digits[0][start : start + samples], digits[1][start : start + samples]
        guess = only(LabelRecovery(), scene(CNN(), x, y).case)
        assert torch.equal(guess.y, y.sort().values)


def test_as_many_labels_are_found_as_there_are_samples_whatever_the_message_says(digits):
    for seed in range(10):
        case = scene(MLP(), digits[0][:7], digits[1][:7], defence=Noise(noise_multiplier=5.0), seed=seed).case
        found = label_leak.counts(case)
        assert found.sum() == 7 and found.min() >= 0


class Headless(torch.nn.Module):
    """Its scores come from a layer that is not linear."""

    def __init__(self, shape, classes):
        super().__init__()
        self.layer = torch.nn.Conv2d(shape[0], classes, shape[1])

    def forward(self, x):
        return self.layer(x).flatten(1)


def test_label_recovery_says_why_it_has_no_hold_on_another_last_layer(digits):
    model = Custom(path="tests.tasks.attack.test_attacks:Headless")
    case = scene(model, digits[0][:2], digits[1][:2]).case
    for attack in (LabelRecovery(), InvertingGradients(), IDLG()):
        assert isinstance(only(attack, case), NotApplicable)
    told = replace(case, budget=2, labels=digits[1][:2])
    assert not isinstance(only(InvertingGradients(labels="given", restarts=1), told), NotApplicable)


def test_labels_of_text_are_recovered_and_its_tokens_are_not_searched():
    x, y = torch.arange(24).reshape(3, 8) % 10, torch.tensor([7, 2, 7])
    case = scene(Transformer(width=16, heads=2, blocks=1), x, y, data=meta((8,), None, kind="text")).case
    assert only(LabelRecovery(), case).y.tolist() == [2, 7, 7]
    for attack in (InvertingGradients(), DLG(), ReadOut()):
        assert "tokens" in only(attack, case).reason


# Search by gradients.


def test_inverting_gradients_finds_a_digit_and_noise_hides_it(digits):
    x, y = digits[0][:1], digits[1][:1]
    average = psnr(square_errors(x, digits[0][digits[1] == y].mean(0, keepdim=True)), 1.0)
    clear = scene(CNN(), x, y, budget=1200)
    guess = only(InvertingGradients(restarts=4), clear.case)
    assert quality(guess, x) > average + 10.0
    assert guess.y.tolist() == y.tolist() and guess.evaluations <= 1200
    noisy = scene(CNN(), x, y, budget=1200, defence=Noise())
    assert quality(only(InvertingGradients(restarts=4), noisy.case), x) < average


def test_inverting_gradients_stays_in_the_range_and_spends_no_more_than_its_budget(digits):
    x, y = 3.0 * digits[0][:2] - 1.0, digits[1][:2]
    case = scene(MLP(), x, y, data=meta((1, 8, 8), (-1.0, 2.0)), budget=100, order=[[0], [1]]).case
    guess = only(InvertingGradients(restarts=2), case)
    assert guess.x.min() >= -1.0 and guess.x.max() <= 2.0
    # 2 starts, 2 local steps a simulation: 25 iterations.
    assert guess.evaluations == 100


def test_of_several_starts_the_one_with_the_smallest_mismatch_is_kept(digits):
    x, y = digits[0][:2], digits[1][:2]
    case = scene(CNN(width=4), x, y, budget=60, told=True).case
    guess = only(InvertingGradients(restarts=3, labels="given"), case)
    again = 1 - torch.nn.functional.cosine_similarity(
        tree.vector(case.simulate(guess.x, guess.y)), tree.vector(case.delta), 0
    )
    assert guess.mismatch == pytest.approx(float(again), abs=1e-5)


def test_knowing_the_local_steps_helps(digits):
    """Four local steps of one sample each at a large rate: it is wrong to take the update for one gradient."""
    x, y = digits[0][:4], digits[1][:4]
    work = FedAvg(lr=1.0, batch_size=1)
    case = scene(MLP(), x, y, order=[[0], [1], [2], [3]], work=work, budget=4800, told=True).case
    simulated = only(InvertingGradients(restarts=4, labels="given"), case)
    ignored = only(InvertingGradients(restarts=4, labels="given", local_steps="ignored"), case)
    assert simulated.mismatch < ignored.mismatch
    assert quality(simulated, x).mean() > quality(ignored, x).mean() + 3.0


def test_steps_that_are_presumed_are_simulated_right_or_wrong(digits):
    x, y = digits[0][:4], digits[1][:4]
    case = scene(MLP(hidden=(8,)), x, y, order=[[0, 1], [2, 3]], budget=24, told=True).case
    right, wrong = (only(InvertingGradients(labels="given", local_steps=steps), case) for steps in (2, 3))
    assert torch.equal(right.x, only(InvertingGradients(labels="given"), case).x)
    assert [rows.tolist() for rows in case.presumed(3)] == [[0, 1], [2, 3], [0, 1]]
    assert wrong.evaluations == 24 and not torch.equal(right.x, wrong.x)


def test_a_table_is_inverted_without_total_variation():
    x = torch.randn(2, 13, generator=torch.Generator().manual_seed(1))
    case = scene(MLP(hidden=(32,)), x, torch.tensor([3, 8]), data=meta((13,), None), budget=2400).case
    guess = only(InvertingGradients(tv=1e6), case)
    rows, found = match(x, guess.x)
    assert square_errors(x[rows], guess.x[found]).max() < 0.02 * x.var()


@pytest.mark.parametrize("attack", [DLG(), IDLG()], ids=["dlg", "idlg"])
def test_deep_leakage_finds_a_sample_of_a_smooth_network_to_the_pixel(digits, attack):
    x, y = digits[0][3:4], digits[1][3:4]
    case = scene(MLP(activation="tanh"), x, y, budget=1500).case
    guess = only(attack, case)
    assert quality(guess, x) > 35.0
    assert guess.y.tolist() == y.tolist()
    assert guess.mismatch < 1e-6


def test_deep_leakage_spends_its_budget_and_not_more_than_a_step_beyond(digits):
    case = scene(CNN(width=4), digits[0][:2], digits[1][:2], budget=50).case
    assert only(DLG(), case).evaluations <= 50 + 20


def test_idlg_says_that_it_is_for_one_sample(digits):
    guess = only(IDLG(), scene(MLP(), digits[0][:2], digits[1][:2]).case)
    assert isinstance(guess, NotApplicable) and "one sample" in guess.reason


# Messages that say nothing.


ON_MESSAGES = [InvertingGradients(), DLG(), IDLG(), ReadOut(), LabelRecovery()]


@pytest.mark.parametrize("attack", ON_MESSAGES, ids=lambda attack: attack.name)
def test_empty_and_broken_messages_are_turned_down_with_the_reason(digits, attack):
    case = scene(MLP(hidden=(8,)), digits[0][:1], digits[1][:1]).case
    zeros = only(attack, replace(case, delta=tree.zeros_like(case.delta)))
    assert isinstance(zeros, NotApplicable) and "zeros" in zeros.reason
    broken = only(attack, replace(case, delta=tree.map(lambda v: v * torch.nan, case.delta)))
    assert isinstance(broken, NotApplicable) and "not finite" in broken.reason


def test_a_guess_is_a_function_of_the_case(digits):
    case = scene(CNN(width=4), digits[0][:2], digits[1][:2], budget=40).case
    for attack in (InvertingGradients(), DLG()):
        assert torch.equal(only(attack, case).x, only(attack, case).x)
