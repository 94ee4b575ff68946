"""Who takes part in a round, and how long it takes on the virtual clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks import tree
from tasks.keys import generator
from tasks.train.algorithms import FedAvg
from tasks.train.devices import LognormalDevices, UniformDevices
from tasks.train.sampling import PoissonSampling, SizeSampling, UniformSampling
from tasks.train.settings import TrainSettings
from tests.tasks.train.runs import SIZES, run

ROUNDS, CLIENTS, COHORT = 3000, 20, 6


def participations(sampling, sizes: np.ndarray, cohort: int = COHORT, rounds: int = ROUNDS) -> np.ndarray:
    """How often each client was drawn in so many rounds: [clients]."""
    counts = np.zeros(len(sizes), int)
    for round_ in range(rounds):
        counts[sampling.draw(sizes, cohort, generator(1, "cohort", round_))] += 1
    return counts


def test_uniform_sampling_gives_every_client_the_same_chance():
    """Inclusion probability cohort / clients, by a chi-square test of the counts without replacement.

    Within a round the indicators have variance p (1 - p) and covariance -p (1 - p) / (N - 1), so
    (N - 1) / N * sum (count - R p)^2 / (R p (1 - p)) is chi-square with N - 1 degrees of freedom."""
    p = COHORT / CLIENTS
    counts = participations(UniformSampling(), np.ones(CLIENTS))
    assert counts.sum() == ROUNDS * COHORT
    statistic = (CLIENTS - 1) / CLIENTS * ((counts - ROUNDS * p) ** 2).sum() / (ROUNDS * p * (1 - p))
    assert 1e-4 < stats.chi2.sf(statistic, CLIENTS - 1) < 1 - 1e-4


def test_sampling_by_size_calls_larger_clients_more_often_and_one_client_in_proportion():
    sizes = np.array([1, 4, 16, 64])
    counts = participations(SizeSampling(), sizes, cohort=2)
    assert (np.diff(counts) > 0).all()
    alone = participations(SizeSampling(), sizes, cohort=1)
    assert stats.chisquare(alone, ROUNDS * sizes / sizes.sum()).pvalue > 1e-4


def test_poisson_sampling_tosses_a_coin_for_each_client():
    """The size of the cohort is binomial, and two clients take part independently of each other."""
    sizes, rounds = np.ones(CLIENTS), range(ROUNDS)
    drawn = np.zeros((ROUNDS, CLIENTS), bool)
    for round_ in rounds:
        drawn[round_, PoissonSampling().draw(sizes, COHORT, generator(2, "cohort", round_))] = True
    p, cohorts = COHORT / CLIENTS, drawn.sum(1)
    assert cohorts.mean() == pytest.approx(COHORT, abs=4 * np.sqrt(CLIENTS * p * (1 - p) / ROUNDS))
    assert cohorts.var() == pytest.approx(CLIENTS * p * (1 - p), rel=0.15)
    together = (drawn[:, 0] & drawn[:, 1]).mean()
    assert together == pytest.approx(p * p, abs=4 * np.sqrt(p * p * (1 - p * p) / ROUNDS))


@given(clients=st.integers(1, 60), data=st.data())
def test_a_cohort_names_distinct_clients_in_ascending_order(clients, data):
    cohort = data.draw(st.integers(1, clients))
    sizes = np.arange(1, clients + 1)
    for sampling in (UniformSampling(), SizeSampling(), PoissonSampling()):
        drawn = sampling.draw(sizes, cohort, generator(0, clients, cohort))
        assert (np.diff(drawn) > 0).all()
        assert ((drawn >= 0) & (drawn < clients)).all()
        assert sampling.poisson or len(drawn) == cohort


def test_virtual_time_is_two_latencies_the_bytes_over_the_links_and_the_samples_over_the_speed():
    devices = UniformDevices(samples_per_second=200.0, download=8.0, upload=0.8, latency=0.25)
    speeds = devices.speeds(np.array([3, 5]), seed=0, population=6)
    got = speeds.seconds(np.array([100, 400]), np.array([1_000_000, 2_000_000]), np.array([100_000, 0]))
    assert got == pytest.approx([0.5 + 1.0 + 0.5 + 1.0, 0.5 + 2.0 + 2.0 + 0.0])


def test_lognormal_devices_have_the_configured_median_and_spread():
    devices, clients = LognormalDevices(spread=0.5), np.arange(20_000)
    speeds, base = devices.speeds(clients, 4, 20_000), UniformDevices().speeds(clients[:1], 4, 20_000)
    for own, middle in ((speeds.compute, base.compute), (speeds.download, base.download), (speeds.upload, base.upload)):
        logs = np.log(own / middle)
        assert np.median(logs) == pytest.approx(0.0, abs=0.02)
        assert logs.std() == pytest.approx(0.5, rel=0.02)
        assert stats.kstest(logs / 0.5, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(np.log(speeds.compute), np.log(speeds.upload))[0, 1]) < 0.03
    assert (speeds.latency == 0.05).all()


def test_a_device_is_as_fast_alone_as_in_company_and_with_no_spread_as_all_others():
    devices = LognormalDevices(spread=1.0)
    alone, together = devices.speeds(np.array([7]), 1, 20), devices.speeds(np.arange(20), 1, 20)
    assert alone.compute[0] == together.compute[7]
    assert devices.speeds(np.array([7]), 2, 20).compute[0] != alone.compute[0]
    even = LognormalDevices(spread=0.0).speeds(np.arange(5), 1, 5)
    assert all((own == base).all() for own, base in zip(even, UniformDevices().speeds(np.arange(5), 1, 5), strict=True))


def test_a_synchronous_run_takes_as_long_as_its_slowest_clients(data):
    """The clock after R rounds on equal devices is the sum, over rounds, of the largest client's time."""
    devices = UniformDevices(samples_per_second=50.0, download=1.0, upload=0.1, latency=0.2)
    train = TrainSettings(cohort=3, devices=devices, algorithm=FedAvg(epochs=2))
    coordinator = run(data, train, rounds=4)
    model = tree.nbytes(coordinator.model)
    sizes, expected = np.array(SIZES), 0.0
    for round_ in range(1, 5):
        cohort = train.sampling.draw(sizes, 3, generator(3, "cohort", round_))
        fixed = 2 * 0.2 + (model + 4) / 125_000 + model / 12_500  # the learning rate comes down with the model
        expected += fixed + 2 * sizes[cohort].max() / 50.0
    assert coordinator.clock == pytest.approx(expected, rel=1e-12)


def test_slower_links_make_compression_pay_in_virtual_time(data):
    from tasks.train.uplink.sign import Sign

    slow = UniformDevices(upload=0.01)
    plain = run(data, TrainSettings(cohort=4, devices=slow), rounds=2)
    signs = run(data, TrainSettings(cohort=4, devices=slow, uplink=(Sign(),)), rounds=2)
    saved = 2 * (plain.ledger.bytes_up - signs.ledger.bytes_up) / 4 / (0.01 * 125_000)
    assert plain.clock - signs.clock == pytest.approx(saved, rel=1e-9)
