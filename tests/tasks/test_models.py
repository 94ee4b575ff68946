"""First weights of the networks."""

import math

import pytest
import torch

from tasks import models
from tasks.models.architectures import CNN, MLP, ResNet


@pytest.mark.parametrize("model", [MLP(hidden=(48, 32)), CNN(), ResNet()], ids=lambda model: model.name)
def test_xavier_weights_have_the_variance_of_the_paper_and_biases_of_0(model):
    drawn = models.build(model.model_copy(update={"weights": "xavier"}), (1, 8, 8), 10, 0).parameters
    plain = models.build(model, (1, 8, 8), 10, 0).parameters
    for name, value in drawn.items():
        if value.dim() > 1:
            field = math.prod(value.shape[2:])
            bound = math.sqrt(6 / (field * (value.shape[0] + value.shape[1])))
            assert float(value.abs().max()) <= bound
            # The variance of n uniform draws has a relative standard error of sqrt(0.8 / n).
            assert float(value.var()) == pytest.approx(bound**2 / 3, rel=4 * math.sqrt(0.8 / value.numel()))
        elif name.endswith("bias"):
            assert not value.any()
        else:
            assert torch.equal(value, plain[name])
