"""Attacks by generators: an untrained one where pixels fail, and a network from updates to samples."""

from dataclasses import replace

import pytest
import torch

from tasks.attack.attacks import CINet, InvertingGradients, LearningToInvert
from tasks.attack.attacks.ci_net import Generator
from tasks.attack.attacks.learning_to_invert import _loss
from tasks.attack.case import Public, View
from tasks.attack.defences import Prune
from tasks.attack.guesses import NotApplicable
from tasks.attack.scoring import match, psnr, square_errors
from tasks.models import MLP
from tasks.models.convnet import ConvNet
from tasks.train.uplink import TopK
from tests.tasks.attack.scenes import meta, scene


def only(attack, case):
    (guess,) = attack.run(View((case,), None))
    return guess


def quality(guess, x):
    rows, found = match(x, guess.x)
    return psnr(square_errors(x[rows], guess.x[found]), 1.0)


def test_an_untrained_generator_sees_through_sigmoids_where_pixels_do_not(digits):
    x, y = digits[0][1000:1001], digits[1][1000:1001]
    case = scene(ConvNet(activation="sigmoid"), x, y, budget=250).case
    by_pixels, by_generator = (
        float(quality(only(attack, case), x)) for attack in (InvertingGradients(restarts=1), CINet())
    )
    assert by_generator > by_pixels + 10.0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (1, 5, 4)])
def test_the_generator_has_four_weights_for_every_pixel_and_stays_in_the_range(shape):
    data = meta(shape, (-1.0, 2.0))
    case = scene(MLP(hidden=(4,)), torch.zeros(3, *shape), torch.tensor([0, 1, 2]), data=data).case
    generator = CINet(channels=1)._generator(case)
    pixels = 3 * shape[1] * shape[2]
    assert sum(value.numel() for value in generator.parameters()) > 4 * pixels
    images = generator(100.0 * torch.randn(3, 128, 1, 1))
    assert images.shape == (3, *shape) and images.min() >= -1.0 and images.max() <= 2.0
    smaller = Generator(shape, data.range, 1, 128)
    smallest = sum(value.numel() for value in smaller.parameters()) > 4 * pixels
    assert smallest or generator.stages[0].out_channels > 1


def test_it_spends_its_budget_and_is_a_function_of_the_case(digits):
    case = scene(ConvNet(), digits[0][:2], digits[1][:2], budget=6, order=[[0], [1]]).case
    first, second = (only(CINet(channels=4), case) for _ in range(2))
    assert first.evaluations == 6 and torch.equal(first.x, second.x)


def test_it_is_for_images():
    case = scene(MLP(hidden=(4,)), torch.randn(2, 13), torch.tensor([3, 8]), data=meta((13,), None)).case
    assert isinstance(only(CINet(), case), NotApplicable)


def learned(digits, samples: int, messages: int, **knobs) -> tuple[float, float]:
    """The mean PSNR over clients with so many samples each, and that of the average of the true class."""
    public = Public(digits[0][:900], digits[1][:900])
    means = torch.stack([public.x[public.y == c].mean(0) for c in range(10)])
    base = replace(scene(ConvNet(), digits[0][:samples], digits[1][:samples]).case, public=public)
    private = [slice(1000 + i * samples, 1000 + (i + 1) * samples) for i in range(messages)]
    cases = tuple(replace(base, delta=base.simulate(digits[0][rows], digits[1][rows])) for rows in private)
    guesses = LearningToInvert(**knobs).run(View(cases, None))
    found = [float(quality(guess, digits[0][rows]).mean()) for guess, rows in zip(guesses, private, strict=True)]
    average = [float(psnr(square_errors(digits[0][rows], means[digits[1][rows]]), 1.0).mean()) for rows in private]
    return sum(found) / messages, sum(average) / messages


def test_a_network_learns_to_invert_single_samples_and_hardly_batches(digits):
    knobs = {"examples": 1500, "epochs": 12, "inputs": 400, "batch_size": 32}
    one, average = learned(digits, 1, 60, **knobs)
    four, _ = learned(digits, 4, 15, **knobs)
    assert one >= average + 4.0
    assert one >= four + 3.0


def test_one_network_serves_all_messages_of_a_kind(digits):
    """Messages together give what each gives alone, and what was trained depends on none of them."""
    public = Public(digits[0][:50], digits[1][:50])
    cases = [
        replace(scene(MLP(hidden=(8,)), digits[0][i : i + 2], digits[1][i : i + 2]).case, public=public)
        for i in (100, 200)
    ]
    attack = LearningToInvert(examples=20, epochs=2)
    together = [guess.x for guess in attack.run(View(tuple(cases), None))]
    for case, x in zip(cases, together, strict=True):
        assert torch.equal(only(attack, case).x, x)


@pytest.mark.parametrize(
    ("seeds", "more"), [((0, 1), {}), ((0, 0), {"defence": Prune(share=0.5)}), ((0, 0), {"uplink": (TopK(),)})]
)
def test_another_broadcast_or_other_entries_that_arrived_are_another_kind(digits, seeds, more):
    """Of one round and size, from models of two nodes, or with another half of their entries."""
    public = Public(digits[0][:50], digits[1][:50])
    cases = [
        replace(
            scene(MLP(hidden=(8,)), digits[0][i : i + 2], digits[1][i : i + 2], seed=seed, **more).case, public=public
        )
        for i, seed in zip((100, 200), seeds, strict=True)
    ]
    cases = [replace(case, seed=0) for case in cases]
    attack = LearningToInvert(examples=20, epochs=2)
    first, second = attack.run(View(tuple(cases), None))
    assert torch.equal(second.x, only(attack, cases[1]).x) and torch.equal(first.x, only(attack, cases[0]).x)


def test_the_loss_is_of_the_order_that_fits_best():
    x = torch.rand(5, 3, 7)
    assert float(_loss(x[:, [2, 0, 1]], x)) == pytest.approx(0.0, abs=1e-6)
    guess = x.clone()
    guess[:, 0] += 0.01
    assert float(_loss(guess.flip(1), x)) == pytest.approx(1e-4 / 3, rel=1e-3)


def test_what_is_public_of_a_defence_is_learnt_with_it(digits):
    """Trained on pruned updates: of the pruned message of one of its own examples it knows the sample."""
    x, y = digits[0][:1], digits[1][:1]
    case = scene(MLP(hidden=(8,)), x, y, defence=Prune(share=0.5)).case
    case = replace(case, public=Public(digits[0][:5], digits[1][:5]))
    attack = LearningToInvert(examples=40, epochs=60, batch_size=20, inputs=200, hidden=(100,), lr=3e-3)
    assert float(quality(only(attack, case), x)) > 20.0
