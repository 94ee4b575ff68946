"""The epsilons that a paper prints, recomputed: user-level, of runs that it extrapolates."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from scipy import integrate, special

from tasks.train.privacy import Participation, accountant
from tasks.train.privacy.central import Scale
from tasks.train.privacy.gaussian import Gaussian

DELTA, RATE = 1e-9, 1024 / 34_753
PRINTED = [
    # noise multiplier, rate, rounds, recomputed to three digits, as printed
    (2.048, RATE, 2006, 4.44, 4.5),
    (1.536, RATE, 2006, 6.51, 6.5),
    (1.024, RATE, 2006, 12.6, 13),
    (0.6144, RATE, 2006, 42.1, 42),
    (0.512, RATE, 2006, 71.7, 72),
    (0.6144, RATE / 10, 2034, 7.22, 7.2),
    (0.6144, RATE / 100, 3390, 3.70, 3.7),
]
"""Of table 1 of "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025."""


@pytest.mark.parametrize(("noise", "rate", "rounds", "exact", "printed"), PRINTED)
def test_the_published_epsilons_are_reproduced(noise, rate, rounds, exact, printed):
    found = accountant.renyi(noise, rate, rounds, DELTA)
    assert found == pytest.approx(exact, rel=0.02)
    assert found <= exact * 1.005, "more orders can only lower it"
    assert found == pytest.approx(printed, rel=0.04)


def test_one_printed_epsilon_is_a_misprint():
    """Where it prints 1.3 the same noise, rate and rounds print 13 two rows below, and 12.6 is what they come to."""
    found = accountant.renyi(1.024, RATE, 2006, DELTA)
    assert found == pytest.approx(12.6, rel=0.005)
    assert found > 9 * 1.3


def test_a_coarse_grid_of_orders_prints_too_much():
    """Of the row with the least noise 370 is printed, which is what the order 1.1 comes to; 1.2 gives 329."""
    orders, one_round = accountant._with_coins(0.3072, RATE)

    def at(order: float) -> float:
        chosen = np.abs(orders - order) < 1e-9
        return rdp.compute_epsilon(orders[chosen], 2006 * one_round[chosen], DELTA)[0]

    assert at(1.1) == pytest.approx(370, rel=0.02)
    assert at(1.2) == pytest.approx(329, rel=0.01)
    assert accountant.renyi(0.3072, RATE, 2006, DELTA) <= at(1.2)


@pytest.mark.parametrize("order", [2, 5, 17])
@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.1), (2.0, 0.03)])
def test_the_divergence_at_whole_orders_is_the_binomial_sum(noise, rate, order):
    terms = [
        special.gammaln(order + 1) - special.gammaln(j + 1) - special.gammaln(order - j + 1)
        + (order - j) * math.log1p(-rate) + j * math.log(rate) + j * (j - 1) / (2 * noise**2)
        for j in range(order + 1)
    ]  # fmt: skip
    orders, one_round = accountant._with_coins(noise, rate)
    assert one_round[list(orders).index(order)] == pytest.approx(special.logsumexp(terms) / (order - 1), rel=1e-6)


@pytest.mark.parametrize("order", [1.05, 1.6, 6.3])
@pytest.mark.parametrize(("noise", "rate"), [(0.3, 0.4), (1.1, 0.07), (9.0, 0.01)])
def test_the_divergence_at_broken_orders_is_its_integral(noise, rate, order):
    """Against an adaptive rule, and it lies on the convex curve through the whole orders."""
    orders, one_round = accountant._with_coins(noise, rate)

    def density(x: float) -> float:
        without = math.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return without * ratio**order

    peaks = [0.0, *range(1, math.ceil(order) + 1)]
    moment = integrate.quad(density, -12 * noise, order + 12 * noise, points=peaks, epsrel=1e-12, limit=1000)[0]
    found = one_round[int(np.abs(orders - order).argmin())]
    assert found == pytest.approx(math.log(moment) / (order - 1), rel=1e-6)
    below, above = (one_round[list(orders).index(max(n, 2.0))] for n in (math.floor(order), math.ceil(order)))
    assert found <= above
    assert order < 2 or found >= below


@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.1), (2.0, 0.03), (1.1, 0.07)])
def test_the_library_bounds_it_from_above(noise, rate):
    library = rdp.RdpAccountant()
    library.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)))
    orders, one_round = accountant._with_coins(noise, rate)
    for order, bound in zip(library.orders, library.rdp, strict=True):
        near = int(np.abs(orders - order).argmin())
        if abs(orders[near] - order) < 1e-9:
            assert one_round[near] <= bound * (1 + 1e-6)
    exact, loose = accountant.renyi(noise, rate, 50, 1e-5), 50 * np.array(library.rdp)
    assert exact <= rdp.compute_epsilon(library.orders, loose, 1e-5)[0] * (1 + 1e-9)


def test_without_sampling_the_divergence_is_the_gaussians():
    orders, one_round = accountant._with_coins(1.7, 1.0)
    for order, divergence in zip(orders, one_round, strict=True):
        assert divergence == pytest.approx(order / (2 * 1.7**2))


def test_rounds_add_up_and_epsilon_moves_the_right_way():
    orders, one_round = accountant._with_coins(1.3, 0.05)
    ten = rdp.compute_epsilon(orders, 10 * one_round, DELTA)[0]
    assert accountant.renyi(1.3, 0.05, 10, DELTA) == pytest.approx(ten)
    assert accountant.renyi(1.3, 0.05, 0, DELTA) == 0.0
    base = accountant.renyi(1.3, 0.05, 100, DELTA)
    assert accountant.renyi(1.4, 0.05, 100, DELTA) < base
    assert accountant.renyi(1.3, 0.06, 100, DELTA) > base
    assert accountant.renyi(1.3, 0.05, 110, DELTA) > base
    # Looser than what privacy loss distributions make of the same run.
    assert accountant.poisson(1.3, 0.05, 100, DELTA) < base


def test_extrapolation_keeps_the_noise_on_the_mean_and_the_rate():
    """The abstract's pair: sigma = 3e-6 on the mean of 1024 of 34,753 clients, as if of 204,800 of 69.5 million."""
    sigma, cohort = 3e-6, 1024
    mechanism = Gaussian(
        noise_multiplier=sigma * cohort, delta=DELTA, accounting="rdp",
        extrapolate_to=Scale(cohort=204_800, population=69_506_000),
    )  # fmt: skip
    how = Participation(rounds=2034, cohort=cohort, population=34_753, poisson=True, busiest=300)
    assert mechanism.extrapolated(how) == pytest.approx(7.2, rel=0.02)
    smaller = Gaussian(
        noise_multiplier=1e-5 * cohort, delta=DELTA, accounting="rdp",
        extrapolate_to=Scale(cohort=204_800, population=6_950_600),
    )  # fmt: skip
    assert smaller.extrapolated(how._replace(rounds=2006)) == pytest.approx(4.5, rel=0.02)
    here = Gaussian(noise_multiplier=1.0, delta=DELTA, extrapolate_to=Scale(cohort=cohort, population=34_753))
    assert here.extrapolated(how) == pytest.approx(here.epsilon(how))


def test_noise_that_hides_nothing_is_accounted_without_delay():
    assert accountant.renyi(0.003, RATE, 2006, DELTA) > 1e4
