"""Both ways to a gradient lead to the same place: alone, nested, stacked, and where nothing depends on it."""

import pytest
import torch
from torch import func

from tasks import models, tree
from tasks.gradients import grad_and_value
from tasks.models.architectures import CNN, MLP, ResNet, Transformer


def equal(a: tree.Tree, b: tree.Tree) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "model", [MLP(), CNN(width=4), ResNet(width=4, blocks=(1, 1)), Transformer(width=8, heads=2)], ids=lambda m: m.name
)
def test_a_gradient_is_that_of_the_transform(model):
    torch.manual_seed(0)
    shape = (12,) if model.name == "transformer" else (1, 8, 8)
    x = torch.randint(0, 5, (7, *shape)) if model.name == "transformer" else torch.randn(7, *shape)
    network, y = models.build(model, shape, 5, 0), torch.arange(7) % 5

    def objective(params):
        return network.losses(params, x, y).mean()

    expected, value = func.grad_and_value(objective)(network.parameters)
    with torch.no_grad():
        gradient, found = grad_and_value(objective)(network.parameters)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    assert found == value
    assert not (found.requires_grad or any(part.requires_grad for part in gradient.values()))


def cubic(params, point):
    return (params["w"] ** 3 * point).sum() + params["b"].square().sum()


PARAMS, POINT = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(3.0)}, torch.tensor([1.0, 4.0])


@torch.no_grad()
def test_a_gradient_of_a_gradient():
    """The gradient of ||(3 w^2 p, 2 b)||^2 is (36 w^3 p^2, 8 b)."""
    gradient, _ = grad_and_value(lambda params: tree.norm(grad_and_value(cubic)(params, POINT)[0]) ** 2)(PARAMS)
    torch.testing.assert_close(gradient, {"w": 36 * PARAMS["w"] ** 3 * POINT**2, "b": 8 * PARAMS["b"]})


@torch.no_grad()
def test_under_a_stack_it_is_one_gradient_a_client():
    points = torch.randn(5, 2)
    stacked, values = func.vmap(grad_and_value(cubic), (None, 0))(PARAMS, points)
    for i, point in enumerate(points):
        alone, value = grad_and_value(cubic)(PARAMS, point)
        torch.testing.assert_close((tree.take(stacked, i), values[i]), (alone, value))


@torch.no_grad()
def test_what_the_value_does_not_depend_on_has_no_gradient():
    zeros = tree.zeros_like(PARAMS)
    assert equal(grad_and_value(lambda params: params["w"].sum())(PARAMS)[0], zeros | {"w": torch.ones(2)})
    assert equal(grad_and_value(lambda _: torch.tensor(1.0))(PARAMS)[0], zeros)


@torch.no_grad()
def test_what_is_told_beside_the_value_comes_along():
    found, (_, aside) = grad_and_value(lambda params: (cubic(params, POINT), {"w": params["w"] * 2}), True)(PARAMS)
    assert equal(aside, {"w": PARAMS["w"] * 2})
    assert not aside["w"].requires_grad
    assert equal(found, grad_and_value(cubic)(PARAMS, POINT)[0])
