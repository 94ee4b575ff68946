"""Randomness as a function of a key."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from tasks import keys

INT64 = st.integers(-(2**63), 2**63 - 1)
WORD = 2**64


def mix(x: int) -> int:
    """SplitMix64's finaliser, in Python's integers."""
    x = (x ^ x >> 30) * keys.MIX_1 % WORD
    x = (x ^ x >> 27) * keys.MIX_2 % WORD
    return x ^ x >> 31


def unshift(x: int, by: int) -> int:
    """The inverse of ``x ^ x >> by``."""
    y = x
    for _ in range(64 // by):
        y = x ^ y >> by
    return y


def unmix(x: int) -> int:
    x = unshift(x, 31) * pow(keys.MIX_2, -1, WORD) % WORD
    x = unshift(x, 27) * pow(keys.MIX_1, -1, WORD) % WORD
    return unshift(x, 30)


def tensor(key: int) -> torch.Tensor:
    key %= WORD
    return torch.tensor(key - WORD if key >= WORD // 2 else key)


@given(INT64)
def test_bits_are_the_hash_of_key_and_counter(key):
    naive = [mix(mix((key + i * keys.GOLDEN) % WORD)) for i in range(1, 6)]
    assert [int(value) % WORD for value in keys.bits(tensor(key), (5,))] == naive
    assert keys.shuffles(np.array([key]), 5)[0].tolist() == naive


@given(INT64, INT64)
def test_folding_a_host_integer_is_folding_its_tensor(key, number):
    assert torch.equal(keys.fold(tensor(key), number), keys.fold(tensor(key), tensor(number)))


def test_folded_keys_are_all_different():
    root = torch.tensor(7)
    folded = keys.fold(root, torch.arange(10_000))
    again = keys.fold(keys.fold(root, 1), torch.arange(10_000))
    assert len({*folded.tolist(), *again.tolist()}) == 20_000


def test_a_path_tells_numbers_from_texts_and_seeds_apart():
    paths = [(0, 1), (0, "1"), (1, 0), (0, 1, 1), (0, "1/int:1"), (0, 11), (0,)]
    assert len({keys.derive(*path) for path in paths}) == len(paths)


@pytest.mark.parametrize("draw", [keys.bits, keys.uniform, keys.normal, keys.rademacher])
def test_a_draw_is_the_same_stacked_alone_and_as_a_prefix(draw):
    clients = keys.fold(torch.tensor(3), torch.arange(5))
    stacked = vmap(lambda key: draw(key, (4, 250)))(clients)
    for client in range(5):
        assert torch.equal(stacked[client], draw(clients[client], (4, 250)))
    assert torch.equal(draw(clients[0], (1000,))[:100], draw(clients[0], (100,)))


@pytest.mark.parametrize(("draw", "law"), [(keys.uniform, "uniform"), (keys.normal, "norm")])
def test_draws_follow_their_law(draw, law):
    values = draw(torch.tensor(11), (200_000,)).double().numpy()
    assert stats.kstest(values, law).pvalue > 1e-3
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / math.sqrt(len(values))
    other = draw(torch.tensor(12), (200_000,)).double().numpy()
    assert abs(np.corrcoef(values, other)[0, 1]) < 5 / math.sqrt(len(values))


def test_the_normal_tail_is_no_thinner_than_it_should_be():
    values = keys.normal(torch.tensor(5), (4_000_000,)).abs()
    for deviations in (3.0, 4.0, 4.5):
        expected = 4e6 * 2 * stats.norm.sf(deviations)
        assert abs(int((values > deviations).sum()) - expected) < 5 * math.sqrt(expected)


def test_the_normal_reaches_beyond_eight_deviations():
    # The hash is a bijection, so the keys whose first draw has the largest radius can be computed.
    farthest = [tensor(unmix(unmix(low)) - keys.GOLDEN) for low in range(64)]
    assert all(int(keys.bits(key, (1,))) >> 11 == 0 for key in farthest)
    assert max(float(keys.normal(key, (1,)).abs()) for key in farthest) > 8.5


def test_signs_are_fair():
    signs = keys.rademacher(torch.tensor(1), (100_000,))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.sum())) < 5 * math.sqrt(len(signs))


def test_shuffles_are_uniform_permutations_that_others_do_not_touch():
    clients = np.array([keys.derive(0, "client", c) for c in range(12_000)])
    orders = keys.shuffles(clients, 3).argsort(1)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.array_equal(keys.shuffles(clients[[7]], 2)[0], keys.shuffles(clients, 3)[7, :2])
