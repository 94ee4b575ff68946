"""Attention, against PyTorch's own, and twice differentiated."""

import pytest
import torch
from torch.nn import functional as F

from tasks.models.blocks import attention


@pytest.fixture
def parts() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_pytorchs(parts, causal):
    torch.testing.assert_close(attention(*parts, causal), F.scaled_dot_product_attention(*parts, is_causal=causal))


def test_a_position_sees_none_after_it(parts):
    before = attention(*parts, True)
    queries, keys, values = (part.detach().clone() for part in parts)
    keys[..., 3:, :], values[..., 3:, :] = 7.0, -7.0
    after = attention(queries, keys, values, True)
    assert torch.equal(after[..., :3, :], before[..., :3, :]) and not torch.equal(after[..., 3:, :], before[..., 3:, :])


def test_an_attack_can_differentiate_its_gradient(parts):
    """Which PyTorch's fast kernels for a CPU cannot: an attack on a transformer's gradients ended there."""
    assert torch.autograd.gradgradcheck(lambda *each: attention(*each, True), [part[:1, :1, :3] for part in parts])
