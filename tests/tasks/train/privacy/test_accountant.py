"""Epsilon, against closed forms, published values and naive integrals."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import integrate, optimize, stats

from tasks.train.privacy import accountant

DELTA = 1e-5


def analytic(noise_multiplier: float) -> float:
    """Epsilon of one Gaussian mechanism, from theorem 8 of Balle and Wang (ICML 2018) solved for epsilon."""
    mu = 1 / noise_multiplier

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(mu / 2 - epsilon / mu)
        second = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return first - math.exp(second) - DELTA

    return optimize.brentq(excess, 0, 5000)


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("releases", [1, 8, 300])
def test_releases_on_all_data_are_one_gaussian_mechanism(noise_multiplier, releases):
    exact = analytic(noise_multiplier / math.sqrt(releases))
    assert accountant.gaussian(noise_multiplier, releases, DELTA) == pytest.approx(exact, rel=1e-4)
    # Without sampling, cohorts of fixed size have nothing to gain, and coins of chance 1 are no coins.
    assert accountant.fixed(noise_multiplier, 50, 50, releases, DELTA) == pytest.approx(exact, rel=1e-4)
    coins = accountant.poisson(noise_multiplier, 1.0, releases, DELTA)
    assert exact * (1 - 1e-6) <= coins <= exact * 1.04


def test_the_published_value():
    """Rate 1/8, noise multiplier 1, 8 rounds, delta 1e-5: 3.175 by loss distributions, 3.794 by Renyi divergences."""
    epsilon = accountant.poisson(1.0, 0.125, 8, DELTA)
    assert epsilon == pytest.approx(3.175, abs=1e-3)
    renyi = RdpAccountant()
    renyi.compose(dp_accounting.PoissonSampledDpEvent(0.125, dp_accounting.GaussianDpEvent(1.0)), 8)
    assert renyi.get_epsilon(DELTA) == pytest.approx(3.794, abs=1e-3)


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(0.7, 0.3), (1.0, 0.1), (1.5, 0.02)])
def test_one_sampled_round_is_its_integral(noise_multiplier, rate):
    def delta(epsilon: float, removed: bool) -> float:
        """The hockey-stick divergence between the noised sums with and without a client, by quadrature."""

        def gap(x: float) -> float:
            without = stats.norm.pdf(x, 0, noise_multiplier)
            with_ = (1 - rate) * without + rate * stats.norm.pdf(x, 1, noise_multiplier)
            upper, lower = (with_, without) if removed else (without, with_)
            return max(upper - math.exp(epsilon) * lower, 0.0)

        return integrate.quad(gap, -12 * noise_multiplier, 1 + 12 * noise_multiplier, limit=500, epsabs=1e-10)[0]

    exact = max(optimize.brentq(lambda e, r=removed: delta(e, r) - DELTA, 0, 30) for removed in (True, False))
    assert accountant.poisson(noise_multiplier, rate, 1, DELTA) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("rounds", [64, 65, 100, 1000, 3001])
def test_rounding_the_rounds_up_is_an_upper_bound_and_a_close_one(rounds):
    def exact(count: int) -> float:
        loss = PLDAccountant(value_discretization_interval=1e-3)
        loss.compose(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(2.0)), count)
        return loss.get_epsilon(DELTA)

    epsilon = accountant.poisson(2.0, 0.01, rounds, DELTA)
    assert exact(rounds) * (1 - 1e-9) <= epsilon <= exact(math.ceil(rounds * (1 + 1 / 32))) * (1 + 1e-9)


def test_thousands_of_rounds_ask_for_a_few_hundred_compositions():
    distinct = {accountant.poisson(20.0, 0.001, rounds, DELTA) for rounds in range(1, 4097)}
    assert len(distinct) <= 64 + 32 * 6


@pytest.mark.parametrize(
    "epsilon",
    [
        lambda z, rounds: accountant.poisson(z, 0.05, rounds, DELTA),
        lambda z, rounds: accountant.fixed(z, 5, 100, rounds, DELTA),
        lambda z, rounds: accountant.gaussian(z, rounds, DELTA),
    ],
    ids=["poisson", "fixed", "gaussian"],
)
def test_epsilon_grows_with_the_rounds_and_falls_with_the_noise(epsilon):
    noises, rounds = (0.5, 0.8, 1.3, 4.0), (0, 1, 2, 10, 63, 64, 65, 200, 1000)
    table = np.array([[epsilon(z, count) for count in rounds] for z in noises])
    assert (table[:, 0] == 0).all()
    assert (np.diff(table, axis=1) >= 0).all()
    assert (table[:, 1:] > 0).all()
    assert (np.diff(table[:, 1:], axis=0) < 0).all()


def test_epsilon_falls_with_the_size_of_the_population():
    for sampled in (
        lambda population: accountant.poisson(1.0, 10 / population, 20, DELTA),
        lambda population: accountant.fixed(1.0, 10, population, 20, DELTA),
    ):
        epsilons = [sampled(population) for population in (10, 20, 100, 1000)]
        assert epsilons == sorted(epsilons, reverse=True)
        assert epsilons[-1] < epsilons[0] / 5


def test_fixed_cohorts_pay_for_exchanging_a_client():
    """Exchanging one client for another is removing one and adding one: no less than the cost of removing one."""
    for noise_multiplier, population in ((0.6, 50), (1.0, 100), (2.0, 1000)):
        removed = accountant.poisson(noise_multiplier, 10 / population, 30, DELTA)
        exchanged = accountant.fixed(noise_multiplier / 2, 10, population, 30, DELTA)
        assert exchanged > removed
