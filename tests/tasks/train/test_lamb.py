"""LAMB: Adam in the length of each tensor, and the schedule of its rate."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks import keys, tree
from tasks.train.algorithms.learning_rates import Hold
from tasks.train.algorithms.server_optimizers import LAMB
from tasks.tree import Tree

FLAT = Hold(decay=1.0)
SHAPES = {"w": (4, 5), "b": (4,), "gain": (3,)}


def draw(seed: int) -> Tree:
    key = torch.tensor(seed)
    return {name: keys.normal(keys.fold(key, i), shape).double() for i, (name, shape) in enumerate(SHAPES.items())}


def path(optimizer: LAMB, start: Tree, deltas: list[Tree]) -> list[Tree]:
    """The model after each of the steps along ``deltas``."""
    found, moments = [start], optimizer.init(start)
    for delta in deltas:
        params, moments = optimizer.apply(found[-1], delta, moments)
        found.append(params)
    return found[1:]


DELTAS = [draw(seed) for seed in range(1, 12)]


@pytest.mark.parametrize("factor", [1e-6, 1e-2, 1e3])
def test_the_length_of_the_pseudo_gradients_does_not_matter(factor):
    """So that a clip norm of 1e-8 trains as well as one of 1."""
    optimizer = LAMB(lr=0.05, epsilon=1e-30)
    plain = path(optimizer, draw(0), DELTAS)
    scaled = path(optimizer, draw(0), [tree.scale(delta, factor) for delta in DELTAS])
    for one, other in zip(plain, scaled, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


def test_without_the_trust_ratio_it_is_adam():
    ours = path(LAMB(lr=0.05, lr_schedule=FLAT, trust_ratio=False), draw(0), DELTAS)
    theirs = {name: value.clone().requires_grad_() for name, value in draw(0).items()}
    adam = torch.optim.Adam(theirs.values(), lr=0.05, betas=(0.9, 0.999), eps=1e-6)
    for params, delta in zip(ours, DELTAS, strict=True):
        for name, value in theirs.items():
            value.grad = -delta[name]  # descent, where a delta points the way
        adam.step()
        for name, value in theirs.items():
            torch.testing.assert_close(params[name], value.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("delta", [1e-4, -7.0])
def test_a_number_under_a_constant_pseudo_gradient_moves_by_its_own_share(delta):
    """u is then the sign of the delta, up to epsilon, so each step is lr |w|."""
    optimizer, w = LAMB(lr=0.02, lr_schedule=FLAT, epsilon=1e-12), torch.tensor(3.0, dtype=torch.float64)
    moments = optimizer.init({"w": w})
    for _ in range(20):
        moved, moments = optimizer.apply({"w": w}, {"w": torch.full_like(w, delta)}, moments)
        assert float(moved["w"] - w) == pytest.approx(math.copysign(0.02 * abs(float(w)), delta), rel=1e-6)
        w = moved["w"]


@given(scale=st.floats(1e-3, 1e3))
def test_every_tensor_moves_by_the_same_share_of_its_length(scale):
    start = draw(0) | {"b": scale * draw(0)["b"]}
    (moved,) = path(LAMB(lr=0.02, lr_schedule=FLAT), start, DELTAS[:1])
    for name, value in start.items():
        assert float((moved[name] - value).norm() / value.norm()) == pytest.approx(0.02, rel=1e-9)


def test_where_a_length_is_zero_the_ratio_is_one():
    zeros = {"w": torch.zeros(4), "v": torch.ones(4)}
    moved, _ = LAMB(lr=0.02, lr_schedule=FLAT, epsilon=1e-12).apply(
        zeros, {"w": torch.ones(4), "v": torch.zeros(4)}, LAMB().init(zeros)
    )
    torch.testing.assert_close(moved["w"], torch.full((4,), 0.02))  # lr, not lr times a length of 0
    assert torch.equal(moved["v"], zeros["v"])


def test_weight_decay_is_in_the_step_before_the_trust_ratio():
    w, delta = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    optimizer = LAMB(lr=0.1, lr_schedule=FLAT, weight_decay=0.5, epsilon=1e-12)
    moved, _ = optimizer.apply({"w": w}, {"w": delta}, optimizer.init({"w": w}))
    u = torch.tensor([1.0, -1.0], dtype=torch.float64) - 0.5 * w
    torch.testing.assert_close(moved["w"], w + 0.1 * 5.0 / u.norm() * u)


def test_the_rate_is_held_and_then_falls_without_a_jump():
    schedule = Hold()
    assert [schedule.factor(step, 0) for step in (0, 749, 750)] == [1.0, 1.0, 1.0]
    assert schedule.factor(1500, 0) == pytest.approx(0.6)
    assert schedule.factor(2250, 0) == pytest.approx(0.36)
    assert schedule.factor(1125, 0) == pytest.approx(math.sqrt(0.6))
    short = LAMB(lr=0.1, lr_schedule=Hold(hold=2, decay=0.5, every=1))
    steps = [draw(0), *path(short, draw(0), DELTAS[:5])]
    shares = [float((b["w"] - a["w"]).norm() / a["w"].norm()) for a, b in itertools.pairwise(steps)]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025], rel=1e-9)
