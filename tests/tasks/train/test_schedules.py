"""Asynchronous schedules on the clock: who is sent what and when, and with which weight it comes back."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tasks.params import ParamsRefused, build
from tasks.train.schedules import FedAsync, FedBuff, FedCompass, FedFix, Fleet, Step, review
from tasks.train.schedules.asynchronous import Staleness
from tasks.train.schedules.log import bias
from tasks.train.schedules.weights import Identical, Measured, Shares, Unbiased

F80 = 1 - np.arange(10) / 9 * 0.8
"""Seconds of ten clients, the fastest of which needs a fifth of the slowest's."""


def fleet(seconds, cohort: int | None = None, weights=None, rounds: int = 1000, jitter=None) -> Fleet:
    """Clients that take so many seconds for their work, or for each step of it where steps are assigned."""
    seconds = np.asarray(seconds, float)

    def pace(clients, turns, version, steps):
        usual = seconds[clients] * np.array([1 if count is None else count for count in steps])
        varied = [jitter(c, t) if jitter and t else 1.0 for c, t in zip(clients, turns, strict=True)]
        return usual * np.array(varied)

    weights = np.ones(len(seconds)) if weights is None else np.asarray(weights, float)
    return Fleet(weights, pace, cohort or len(seconds), rounds)


def play(schedule, clients: Fleet, count: int) -> list[Step]:
    return list(itertools.islice(schedule.steps(clients), count))


def given_to(steps: list[Step], clients: int) -> np.ndarray:
    """The weight that each client had in all steps together."""
    total = np.zeros(clients)
    for step in steps:
        np.add.at(total, [flight.client for flight in step.flights], step.weights / step.over)
    return total


# FedFix.


def test_fedfix_takes_a_fifth_of_a_second_as_a_fifth():
    """1 / 0.2 in floating point must not be a sixth period, neither in the weights nor on the clock."""
    clients = fleet([1.0, 0.3, 0.1])
    assert FedFix(period=0.2).gaps(clients).tolist() == [5, 2, 1]
    arrivals = {c: [] for c in range(3)}
    for step in play(FedFix(period=0.2), clients, 40):
        for flight in step.flights:
            arrivals[flight.client].append(step.number)
    assert [arrivals[c][:3] for c in range(3)] == [[5, 10, 15], [2, 4, 6], [1, 2, 3]]


@given(
    parts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    period=st.integers(1, 60),
    weights=st.lists(st.integers(1, 9), min_size=8, max_size=8),
)
@examples(deadline=None, max_examples=60)
def test_fedfix_gives_every_client_its_share_over_a_hyper_period(parts, period, weights):
    """d_i f_i = p_i to 1e-12 over a whole number of hyper-periods, for commensurate times."""
    longest = max(parts)
    gaps = [-(-part // period) for part in parts]
    hyper = math.lcm(*gaps)
    assume(hyper < 3000)
    weights = np.array(weights[: len(parts)], float)
    clients = fleet(np.array(parts) / 7, weights=weights)
    steps = play(FedFix(period=period / longest), clients, hyper)
    assert np.abs(given_to(steps, len(parts)) / hyper - weights / weights.sum()).max() < 1e-12
    for step in steps:
        assert (step.staleness + 1 == [gaps[flight.client] for flight in step.flights]).all()
    assert max(step.staleness.max(initial=0) for step in steps) == max(gaps) - 1


def test_fedfix_with_equal_clients_and_half_their_time_steps_in_vain_every_other_time():
    steps = play(FedFix(period=0.5), fleet(np.full(4, 3.0)), 20)
    assert [len(step.flights) for step in steps] == [0, 4] * 10
    assert all((step.weights / step.over == 2 / 4).all() for step in steps[1::2])


# Weights.


def test_unbiased_weights_give_every_client_its_share_and_identical_ones_do_not():
    weights = np.arange(1.0, 11.0)
    for schedule, count, allowed in ((FedAsync(), 8000, 5e-4), (FedBuff(), 1600, 1e-12), (FedBuff(size=3), 99, 1e-12)):
        clients = fleet(F80, weights=weights, rounds=count)
        assert bias(play(schedule, clients, count), weights) < allowed
        naive = schedule.model_copy(update={"weighting": Identical()})
        assert bias(play(naive, fleet(F80, weights=weights), count), weights) > 0.03


def test_identical_weights_are_one_and_one_over_the_size_and_the_share_times_a_constant():
    weights = np.arange(1.0, 11.0)
    for step in play(FedAsync(weighting=Identical()), fleet(F80, weights=weights), 50):
        assert (step.weights / step.over).tolist() == [1.0]
    for step in play(FedBuff(weighting=Identical(), size=4), fleet(F80, weights=weights), 50):
        assert (step.weights / step.over).tolist() == [0.25] * 4
    steps = play(FedFix(weighting=Identical(), period=0.2), fleet(F80, weights=weights), 60 * 20)
    factors = {
        round(w / step.over / weights[f.client], 12)
        for step in steps
        for f, w in zip(step.flights, step.weights, strict=True)
    }
    assert len(factors) == 1
    assert sum((step.weights / step.over).sum() for step in steps) / len(steps) == pytest.approx(1.0)


def test_weights_by_share_are_the_shares():
    weights = np.arange(1.0, 11.0)
    for step in play(FedBuff(weighting=Shares()), fleet(F80, weights=weights), 30):
        assert step.weights / step.over == pytest.approx(weights[[f.client for f in step.flights]] / weights.sum())


def test_measured_weights_are_the_unbiased_ones_where_gaps_are_even():
    for step, known in zip(
        play(FedFix(weighting=Measured(), period=0.3), fleet(F80), 200),
        play(FedFix(weighting=Unbiased(), period=0.3), fleet(F80), 200),
        strict=True,
    ):
        assert step.weights.tolist() == known.weights.tolist()


@given(seed=st.integers(0, 2**31), schedule=st.sampled_from([FedFix(), FedAsync(), FedBuff(size=3)]))
@examples(deadline=None, max_examples=20)
def test_measured_weights_add_up_to_the_share_whatever_the_pace(seed, schedule):
    """With momentum 1 a client's weights so far are p_i times the step in which it last took part."""
    draws = np.random.default_rng(seed)
    measured = schedule.model_copy(update={"weighting": Measured(momentum=1.0)})
    steps = play(measured, fleet(F80, jitter=lambda c, t: draws.lognormal(0, 0.5)), 120)
    last = np.zeros(10)
    for step in steps:
        last[[flight.client for flight in step.flights]] = step.number
    assert given_to(steps, 10) == pytest.approx(last / 10)


def test_measured_weights_beat_those_of_the_usual_pace_where_the_pace_varies():
    """Where jobs last exponentially long, a window's share of them is not what the mean times say."""
    draws = np.random.default_rng(0)
    taken = {(c, t): draws.exponential() for c in range(10) for t in range(6000)}
    biases = {
        kind.name: bias(play(FedFix(weighting=kind), fleet(F80, jitter=lambda c, t: taken[c, t]), 3000), np.ones(10))
        for kind in (Measured(), Unbiased(), Identical())
    }
    assert biases["measured"] < 0.01 < biases["unbiased"]


def test_exponential_times_are_weighed_by_their_rates():
    """d_i = p_i sum_j rate_j / rate_i: the mean times are all that asynchronous weights need."""
    rates, draws = np.array([1.0, 2.0, 5.0]), np.random.default_rng(1)
    steps = play(FedAsync(), fleet(1 / rates, jitter=lambda c, t: draws.exponential()), 20_000)
    for client in range(3):
        (found,) = {float((s.weights / s.over)[0]) for s in steps if s.flights[0].client == client}
        assert found == pytest.approx(rates.sum() / rates[client] / 3)
    assert bias(steps, np.ones(3)) < 0.01


def test_the_discount_of_old_uploads_falls_from_alpha():
    discount = Staleness(alpha=0.9, exponent=0.5)
    assert discount.factor(0) == 0.9
    assert discount.factor(3) == pytest.approx(0.45)
    falls = [discount.factor(age) for age in range(50)]
    assert (np.diff(falls) < 0).all()
    assert {Staleness(alpha=0.6).factor(age) for age in range(50)} == {0.6}
    plain, stale = (
        play(FedAsync(weighting=Shares(), staleness=s), fleet(F80), 60) for s in (Staleness(), Staleness(exponent=0.5))
    )
    for one, other in zip(plain, stale, strict=True):
        assert other.weights == pytest.approx(one.weights / np.sqrt(1 + one.staleness))


# FedAsync and FedBuff.


def test_uploads_that_arrive_together_are_taken_in_one_by_one_from_the_lowest_client_on():
    steps = play(FedAsync(), fleet([1.0, 0.1, 0.25, 0.5]), 40)
    at_one = [step.flights[0].client for step in steps if step.seconds == 1.0]
    assert at_one == [0, 1, 2, 3]
    assert [step.number for step in steps] == list(range(1, 41))


def test_asynchronous_flights_leave_with_the_model_that_their_client_made():
    for step in play(FedAsync(), fleet(F80), 100)[1:]:
        (flight,) = step.sent if step.number > 1 else (None,)
        assert flight.version == step.number - 1


def test_a_client_waits_for_the_flush_or_goes_on_at_once():
    seconds = [0.1, 1.0, 1.0, 1.0]
    waiting = play(FedBuff(size=3), fleet(seconds), 40)
    assert all(max(Counter(f.client for f in step.flights).values()) == 1 for step in waiting)
    assert {flight.version for step in waiting[1:] for flight in step.sent} == set(range(1, 40))
    going = play(FedBuff(size=3, restart="immediately"), fleet(seconds), 40)
    assert max(Counter(f.client for f in going[0].flights).values()) == 3
    assert going[0].seconds == pytest.approx(0.3)
    # The third of them filled the buffer, so its client already leaves with the next model.
    assert [flight.version for flight in going[0].sent] == [0] * 6
    assert going[1].sent[0].version == 1


def test_a_buffer_for_all_equal_clients_is_a_round_of_all():
    for step in play(FedBuff(size=4), fleet(np.full(4, 2.0), weights=[1, 2, 3, 4], rounds=10), 10):
        assert [flight.client for flight in step.flights] == [0, 1, 2, 3]
        assert (step.weights / step.over).tolist() == [0.1, 0.2, 0.3, 0.4]
        assert step.seconds == 2.0 * step.number


@pytest.mark.parametrize("schedule", [FedFix(), FedAsync(), FedBuff(size=3), FedBuff(size=3, restart="immediately")])
def test_no_more_clients_work_than_the_cohort_and_nobody_twice_at_a_time(schedule):
    draws = np.random.default_rng(3)
    clients = fleet(np.linspace(0.2, 1, 30), cohort=5, rounds=300)
    clients.draw = lambda idle, count, number: draws.permutation(idle)[:count]
    steps = play(schedule, clients, 300)
    flights = sorted((f for step in steps for f in step.sent), key=lambda f: f.sent)
    events = sorted([(f.sent, 1, f.client) for f in flights] + [(f.due, 0, f.client) for f in flights])
    busy: set[int] = set()
    for _, sent, client in events:
        assert (client not in busy) == bool(sent)
        busy ^= {client}
        assert len(busy) <= 5
    taken = {f.number for step in steps for f in step.flights}
    assert len(taken) == sum(len(step.flights) for step in steps)
    assert len({f.client for f in flights}) == 30


# FedCompass.


def test_compass_with_two_clients_is_the_table_worked_out_by_hand():
    """Paces of 1 and 3 seconds a step, 5 to 30 steps. Client 1's first upload at 90 comes after the group of client 0,
    due at the same time, has been aggregated and client 0 has left again; from 120 on they arrive together."""
    steps = play(FedCompass(max_steps=30, min_steps=5, latest_factor=1.2), fleet([1.0, 3.0]), 11)
    found = [
        (
            s.seconds,
            [(f.client, f.sent, f.steps, f.version, a) for f, a in zip(s.flights, s.staleness.tolist(), strict=True)],
        )
        for s in steps
    ]
    assert found == [
        (30.0, [(0, 0.0, 30, 0, 0)]),
        (60.0, [(0, 30.0, 30, 1, 0)]),
        (90.0, [(0, 60.0, 30, 2, 0)]),
        (90.0, [(1, 0.0, 30, 0, 3)]),
        (120.0, [(0, 90.0, 30, 3, 1), (1, 90.0, 10, 4, 0)]),
        (150.0, [(0, 120.0, 30, 5, 0), (1, 120.0, 10, 5, 0)]),
        (180.0, [(0, 150.0, 30, 6, 0), (1, 150.0, 10, 6, 0)]),
        (210.0, [(0, 180.0, 30, 7, 0), (1, 180.0, 10, 7, 0)]),
        (240.0, [(0, 210.0, 30, 8, 0), (1, 210.0, 10, 8, 0)]),
        (270.0, [(0, 240.0, 30, 9, 0), (1, 240.0, 10, 9, 0)]),
        (300.0, [(0, 270.0, 30, 10, 0), (1, 270.0, 10, 10, 0)]),
    ]
    assert steps[3].weights / steps[3].over == pytest.approx([0.5 * 0.9 / 2])
    assert steps[4].weights / steps[4].over == pytest.approx([0.45 / math.sqrt(2), 0.45])


def test_compass_with_equal_clients_becomes_rounds_of_all_with_most_steps_and_nothing_stale():
    steps = play(FedCompass(max_steps=12, min_steps=3), fleet(np.full(5, 2.0)), 30)
    assert [len(step.flights) for step in steps] == [1] * 5 + [5] * 25
    for step in steps[6:]:
        assert {flight.steps for flight in step.flights} == {12}
        assert step.staleness.tolist() == [0] * 5
        assert step.weights / step.over == pytest.approx(np.full(5, 0.9 / 5))


def test_a_late_client_goes_on_at_once_and_counts_in_the_next_step():
    """Client 1, whose second work takes three times as long as before, misses its group's latest moment."""
    clients = fleet([1.0, 1.0], jitter=lambda client, turn: 3.0 if (client, turn) == (1, 2) else 1.0)
    steps = play(FedCompass(max_steps=10, min_steps=5, latest_factor=1.5), clients, 5)
    assert (steps[2].seconds, [f.client for f in steps[2].flights]) == (25.0, [0])  # 10 to 20, and waited till 25
    both = next(s for s in steps if (1, 2) in [(f.client, f.turn) for f in s.flights])
    assert [(f.client, f.due) for f in both.flights] == [(1, 40.0), (0, 45.0)]
    again = next(f for step in steps for f in step.sent if (f.client, f.turn) == (1, 3))
    assert again.sent == 40.0
    assert again.version == both.number - 1  # its own update is not in the model that it left with


@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
    least=st.floats(0.05, 1),
    factor=st.floats(1, 2),
    spread=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**31),
)
@examples(deadline=None, max_examples=200)
def test_compass_keeps_its_promises_whatever_the_paces(seconds, least, factor, spread, seed):
    """Steps within bounds, none but first uploads alone in a step of their own choice, and every upload that has
    arrived by a group's step is in exactly one step: nothing is lost and nothing waits for ever."""
    most = 40
    rules = FedCompass(max_steps=most, min_steps=max(1, int(least * most)), latest_factor=factor)
    draws = np.random.default_rng(seed)
    steps = play(rules, fleet(seconds, jitter=lambda c, t: draws.lognormal(0, spread)), 60)
    assert len(steps) == 60
    sent = [flight for step in steps for flight in step.sent]
    assert all(rules.min_steps <= flight.steps <= most for flight in sent if flight.turn > 1)
    assert all(flight.steps == most for flight in sent if flight.turn == 1)
    taken = Counter(flight.number for step in steps for flight in step.flights)
    assert set(taken.values()) == {1}
    by_client = {}
    for flight in sent:
        before = by_client.get(flight.client)
        assert before is None or before.due <= flight.sent + 1e-9
        by_client[flight.client] = flight
    # Whoever has left again was taken in, or came late after the last step of a group.
    last_group = max((s.seconds for s in steps if any(f.turn > 1 for f in s.flights)), default=0.0)
    for flight in sent:
        if by_client[flight.client].number != flight.number and flight.due < last_group and flight.turn > 1:
            assert flight.number in taken


@given(seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
@examples(deadline=None, max_examples=200)
def test_without_adaptation_or_patience_nobody_waits_for_ever(seconds):
    rules = FedCompass(max_steps=10, min_steps=10, latest_factor=1.0)
    for step in play(rules, fleet(seconds), 80):
        assert {flight.steps for flight in step.flights} == {10}


def test_who_joins_a_group_does_as_much_as_fits_until_it_is_expected():
    """b + Q s <= T < b + (Q + 1) s, with T the moment at which the first of the group opened it for."""
    seconds = [1.0, 1.37, 2.11, 3.3]
    steps = play(FedCompass(max_steps=50, min_steps=5), fleet(seconds), 40)
    for step in steps[8:]:
        expected = max(flight.due for flight in step.flights)
        assert step.seconds == pytest.approx(expected)
        for flight in step.flights:
            assert flight.due <= expected + 1e-6
            assert flight.steps == 50 or expected < flight.due + seconds[flight.client] + 1e-6


# What is read off a schedule.


def test_the_review_counts_idle_time_and_staleness():
    """Two clients of 1 and 4 seconds in a buffer for two: the fast one waits for three of every four seconds."""
    steps = play(FedBuff(size=2), fleet([1.0, 4.0], rounds=5), 5)
    found = review(steps, np.ones(2), 2)
    assert found == {"schedule_bias": 0.0, "staleness": 0.0, "max_staleness": 0, "idle": pytest.approx(3 / 8)}


def surrogate(schedule, optima: np.ndarray, count: int, lr: float = 0.01) -> np.ndarray:
    """The mean of the second half of the server's models on f_i(x) = |x - optimum_i|^2 / 2, one local step each."""
    models, clients = [np.zeros(optima.shape[1])], fleet(F80, rounds=count)
    for step in play(schedule, clients, count):
        changes = [lr * (optima[f.client] - models[f.version]) for f in step.flights]
        moved = sum((w * d for w, d in zip(step.weights / step.over, changes, strict=True)), np.zeros_like(models[0]))
        models.append(models[-1] + moved)
    return np.mean(models[len(models) // 2 :], 0)


@pytest.mark.parametrize(
    ("schedule", "count"),
    [(FedAsync(), 8000), (FedFix(period=0.5), 800), (FedBuff(size=5), 1600)],
    ids=["async", "fedfix", "fedbuff"],
)
def test_quadratics_end_in_the_optimum_of_the_objective_that_was_meant(schedule, count):
    """With weights that do not know the rates, they end in the mean that counts the fast clients more often."""
    optima = np.random.default_rng(0).normal(size=(10, 5))
    meant = optima.mean(0)
    rates = np.zeros(10)
    for step in play(schedule, fleet(F80, rounds=count), count):
        np.add.at(rates, [flight.client for flight in step.flights], 1)
    fast = rates @ optima / rates.sum()
    gap = np.linalg.norm(fast - meant)
    assert np.linalg.norm(surrogate(schedule, optima, count) - meant) < 0.05 * gap
    naive = schedule.model_copy(update={"weighting": Identical()})
    found = surrogate(naive, optima, count)
    assert np.linalg.norm(found - meant) > 0.9 * gap
    assert np.linalg.norm(found - fast) < 0.05 * gap


def test_the_optimum_is_a_fixed_point_of_unbiased_weights_over_a_hyper_period():
    """With the model held at the true optimum, what a hyper-period adds up to is nothing."""
    seconds = [1.0, 0.5, 0.25]
    optima = np.random.default_rng(1).normal(size=(3, 4))
    changes = optima - optima.mean(0)
    for schedule, count in ((FedAsync(), 7), (FedFix(period=0.5), 2)):
        steps = play(schedule, fleet(seconds), count)
        assert steps[-1].seconds == 1.0
        assert np.abs(given_to(steps, 3) @ changes).max() < 1e-12
    biased = play(FedAsync(weighting=Identical()), fleet(seconds), 7)
    assert np.abs(given_to(biased, 3) @ changes).max() > 0.1


# What makes no sense is refused.


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"schedule": {"name": "fedfix"}, "algorithm": {"name": "scaffold"}}, "needs the answers of a whole round"),
        ({"schedule": {"name": "fedasync"}, "sampling": {"name": "poisson"}}, "tosses coins for a round"),
        ({"schedule": {"name": "fedcompass"}, "cohort": 5}, "must be partition.clients = 20"),
        ({"schedule": {"name": "fedcompass", "max_steps": 5, "min_steps": 6}}, "min_steps = 6 must be at most"),
        ({"schedule": {"name": "fedbuff", "size": 11}}, "must be at most train.cohort = 10"),
        (
            {
                "schedule": {"name": "fedbuff"},
                "privacy": {"name": "adaptive"},
                "algorithm": {"name": "fedavg", "weighting": "uniform"},
            },
            "its clip norm moves",
        ),
        (
            {
                "schedule": {"name": "fedbuff"},
                "privacy": {"name": "gaussian", "extrapolate_to": {"cohort": 100, "population": 1000}},
                "algorithm": {"name": "fedavg", "weighting": "uniform"},
            },
            "extrapolate_to: must be null",
        ),
    ],
    ids=["rounds", "coins", "cohort", "bounds", "buffer", "clip norm", "extrapolation"],
)
def test_combinations_without_sense_are_refused_with_a_reason(train, said):
    with pytest.raises(ParamsRefused, match=said):
        build({"partition": {"clients": 20}, "train": train})


def test_combinations_with_sense_are_not():
    gaussian = {"name": "gaussian", "noise_multiplier": 1.0, "clip_norm": 0.5}
    for schedule in ({"name": "fedbuff", "size": 4}, {"name": "fedfix"}, {"name": "fedasync"}):
        uniform = {"name": "fedavg", "weighting": "uniform"}
        build({"train": {"schedule": schedule, "privacy": gaussian, "algorithm": uniform, "uplink": [{"name": "dgc"}]}})
    build(
        {
            "train": {
                "schedule": {"name": "fedbuff", "size": 30, "restart": "immediately"},
                "algorithm": {"name": "fedper"},
            }
        }
    )
