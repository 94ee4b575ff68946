"""What a run's noise has cost so far: epsilon at a given delta, from Google's ``dp-accounting``.

A *noise multiplier* here is the standard deviation of the noise over the SENSITIVITY: the most that the difference
between two neighbouring populations moves the noised sum. With clip norm C that is C where a client is added or
removed, and 2 C where its data are exchanged for others.
"""

import functools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from tasks.train.privacy.mechanism import Participation

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

BROKEN = [1 + i / 100 for i in range(1, 10)] + [1 + i / 10 for i in range(1, 100) if i % 10]
WHOLE = [*range(2, 64), 128, 256, 512, 1024]
"""The orders at which Renyi divergences are taken; the noisier a round is, the larger the best one."""


def central(
    noise_multiplier: float, delta: float, participation: Participation, accounting: Literal["pld", "rdp"] = "pld"
) -> float:
    """Epsilon of the Gaussian mechanism on sums of clipped uploads. ``noise_multiplier`` is over the CLIP NORM.

    Clients that come when they are ready are not sampled, so nothing is amplified: epsilon is that of the client that
    has weighed most, exactly. Neighbours are then two populations in which one client's data are exchanged for others
    that take as long.
    """
    rounds, cohort, population = participation.rounds, participation.cohort, participation.population
    if participation.exposure is not None:
        return gaussian(noise_multiplier / 2, participation.exposure, delta)
    if not participation.poisson:
        return fixed(noise_multiplier / 2, cohort, population, rounds, delta)
    account = renyi if accounting == "rdp" else poisson
    return account(noise_multiplier, cohort / population, rounds, delta)


def at_scale(
    noise_multiplier: float,
    delta: float,
    participation: Participation,
    cohort: int,
    population: int,
    accounting: Literal["pld", "rdp"] = "pld",
) -> float:
    """Epsilon that the same training would cost with a larger ``cohort`` of a larger ``population``: EXTRAPOLATED.

    The noise on the MEAN stays as it was, sigma = z / cohort clip norms, and so z grows with the cohort. It is a
    promise about no run that took place: that the model would come out as good there is an assumption.

    Source: "Enabling Differentially Private Federated Learning for Speech Recognition", NeurIPS 2025, table 1.
    """
    larger = participation._replace(cohort=cohort, population=population)
    return central(noise_multiplier * cohort / participation.cohort, delta, larger, accounting)


def gaussian(noise_multiplier: float, releases: float, delta: float) -> float:
    """Epsilon of ``releases`` Gaussian mechanisms on all of the data: exact, since together they are a single one.

    A release in which the data weigh w times as much as the noise was made for is w^2 of them.

    Source: Balle and Wang, ICML 2018, theorem 8; Dong, Roth and Su, JRSS-B 2022, corollary 3.3 (composition).
    """
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise_multiplier / math.sqrt(releases), delta)) if releases else 0.0


def poisson(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """Epsilon of Gaussian mechanisms on samples that each client joins by its own coin of chance ``rate``.

    Neighbours: with or without one client. An upper bound, tight up to the discretisation of the privacy loss. Beyond
    64 rounds it is that of the next number of rounds with six significant bits: at most 1/32 more rounds, and never too
    small, so that a run of thousands of rounds asks for a few hundred compositions.
    """
    spare = max(rounds.bit_length() - 6, 0)
    rounded = -(-rounds >> spare) << spare
    return _poisson(noise_multiplier, rate, rounded, delta) if rounds else 0.0


def renyi(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """As :func:`poisson`, by Renyi divergences: looser, and what most papers print.

    epsilon = min over a of  rounds * D_a + log(1 - 1/a) - (log delta + log a) / (a - 1)

    Source: Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019, section
    3.3; the conversion is Canonne, Kamath and Steinke, NeurIPS 2020, proposition 12.
    """
    from dp_accounting import rdp

    orders, one_round = _with_coins(noise_multiplier, rate)
    return float(rdp.compute_epsilon(orders, rounds * one_round, delta)[0]) if rounds else 0.0


def fixed(noise_multiplier: float, cohort: int, population: int, rounds: int, delta: float) -> float:
    """Epsilon of Gaussian mechanisms on cohorts of fixed size, drawn uniformly without replacement.

    Neighbours: one client's data exchanged for any other; ``noise_multiplier`` is over the sensitivity that this has.
    An upper bound: the smaller of the Renyi accountant's for subsampling without replacement and the one that claims no
    amplification by sampling at all.

    Source: Wang, Balle and Kasiviswanathan, AISTATS 2019, theorem 9.
    """
    from dp_accounting import rdp

    orders, one_round = _without_replacement(noise_multiplier, cohort, population)
    amplified = rdp.compute_epsilon(orders, rounds * one_round, delta)[0]
    return min(float(amplified), gaussian(noise_multiplier, rounds, delta))


@functools.lru_cache(maxsize=4096)
def _poisson(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    composed = _loss_distribution(noise_multiplier, rate).self_compose(rounds)
    with np.errstate(over="ignore"):  # exp(epsilon) overflows where epsilon is in the hundreds and promises nothing
        return float(composed.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=8)
def _loss_distribution(noise_multiplier: float, rate: float) -> "PrivacyLossDistribution":
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    # One release's loss grows like z^-2; a step that grows with it bounds the distribution's length, and the time.
    step = 1e-3 * max(1.0, noise_multiplier**-2)
    return from_gaussian_mechanism(noise_multiplier, sampling_prob=rate, value_discretization_interval=step)


@functools.lru_cache(maxsize=8)
def _with_coins(noise_multiplier: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The orders, and the Renyi divergence of one round at each.

    At broken orders the library has an upper bound, and with little noise none: there the divergence is integrated.
    """
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(orders=WHOLE)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier)))
    # With so little noise epsilon is beyond 10,000 and says nothing, and the integrals take long.
    broken = BROKEN if noise_multiplier > 0.05 else []
    divergences = [_integrated(noise_multiplier, rate, order) for order in broken]
    return np.array(broken + WHOLE), np.concatenate([divergences, accountant.rdp])


def _integrated(noise_multiplier: float, rate: float, order: float) -> float:
    """The Renyi divergence between the sampled Gaussian and the Gaussian, by the trapezoidal rule.

    The integrand is analytic up to pi z^2 off the real line, so that the rule's error vanishes faster than exp(-100).
    """
    from scipy.special import logsumexp

    step = min(noise_multiplier, noise_multiplier**2) / 10
    x = np.arange(-14 * noise_multiplier, order + 14 * noise_multiplier, step)
    with np.errstate(divide="ignore"):  # of a rate of 1
        ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * noise_multiplier**2))
    density = -(x**2) / (2 * noise_multiplier**2) - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    return float(logsumexp(density + order * ratio) + math.log(step)) / (order - 1)


@functools.lru_cache(maxsize=8)
def _without_replacement(noise_multiplier: float, cohort: int, population: int) -> tuple[np.ndarray, np.ndarray]:
    """The orders, and the Renyi divergence of one round at each."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(population, cohort, event))
    return accountant.orders, accountant.rdp
