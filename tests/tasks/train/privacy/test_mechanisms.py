"""What each mechanism promises: bounded influence, the noise it says, and nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from tasks import keys, tree
from tasks.params import ParamsRefused, build
from tasks.train.privacy import Mechanism, Participation, Sums, accountant
from tasks.train.privacy.adaptive import Adaptive
from tasks.train.privacy.gaussian import Gaussian
from tasks.train.privacy.local import Local
from tasks.train.privacy.none import NoPrivacy
from tasks.train.uplink import Chain
from tasks.train.uplink.codec import Codec
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.sign import Sign
from tasks.tree import Tree

KEY = torch.tensor(5)
SILENT = torch.tensor(0)


def draw(clients: int, key: Tensor = KEY) -> Tree:
    """Stacked uploads of two tensors."""
    return {"w": keys.normal(key, (clients, 4, 5)), "b": keys.normal(keys.fold(key, 1), (clients, 3))}


def collect(mechanism: Mechanism, state: Tree, uploads: Tree, key: Tensor, codecs: tuple[Codec, ...] = ()) -> Sums:
    """A round up to the server's sums, as the engine takes it, with uniform weights."""
    count = len(next(iter(uploads.values())))
    chain = Chain(codecs, tree.take(uploads, 0))

    def send(upload: Tree, key: Tensor) -> tuple[Tree, Tree]:
        ready, note = mechanism.on_device(state, upload, key)
        payload, _ = chain.encode(ready, chain.memory(), key)
        return mechanism.on_arrival(state, chain.decode(payload)), tree.map(Tensor.float, note)

    arrived, notes = vmap(send)(uploads, keys.fold(key, torch.arange(count)))
    totals = (tree.map(lambda value: value.sum(0), values) for values in (arrived, notes))
    return Sums(*totals, torch.tensor(float(count)), count)


def mean(sums: Sums) -> Tree:
    return tree.scale(sums.total, 1 / sums.weight)


@pytest.mark.parametrize(
    "mechanism", [NoPrivacy(), Gaussian(noise_multiplier=0, clip_norm=1e6), Adaptive(noise_multiplier=0, clip_norm=1e6)]
)
def test_without_noise_and_with_room_enough_it_is_federated_averaging_to_the_bit(mechanism):
    uploads, state = draw(7), mechanism.init()
    for round_ in range(3):
        sums = collect(mechanism, state, uploads, keys.fold(KEY, round_))
        released, state = mechanism.release(state, sums, 7, keys.fold(KEY, 100 + round_))
        for name, value in mean(released).items():
            assert torch.equal(value, uploads[name].sum(0) * (1 / torch.tensor(7.0)))
    assert mechanism.epsilon(Participation(3, 7, 10, True, 3)) is None


@pytest.mark.parametrize("mechanism", [Gaussian(), Adaptive()])
@given(magnitudes=st.lists(st.sampled_from([0.0, 1e-30, 1e-6, 0.9, 1.1, 1e6, 1e18, 1e30]), min_size=3, max_size=3))
@pytest.mark.parametrize(
    "codecs", [(), (RandomK(unbiased=True, error_feedback=False),), (Quantize(bits=1),), (Sign(),)], ids=str
)
def test_no_client_moves_the_sum_by_more_than_the_clip_norm(mechanism, codecs, magnitudes):
    state = mechanism.init()
    uploads = tree.map(lambda v: v * torch.tensor(magnitudes).reshape(-1, *[1] * (v.dim() - 1)), draw(3))
    everyone = collect(mechanism, state, uploads, KEY, codecs)
    others = collect(mechanism, state, tree.take(uploads, slice(2)), KEY, codecs)
    moved = tree.square_distance(everyone.total, others.total).sqrt()
    assert float(moved) <= mechanism.clipped_at(state) * (1 + 1e-5)


def test_the_server_clips_again_because_a_codec_can_lengthen():
    uploads, codecs = draw(1), (RandomK(density=0.05, unbiased=True, error_feedback=False),)
    mechanism = Gaussian(clip_norm=1.0)
    unchecked = collect(NoPrivacy(), {}, uploads, KEY, codecs)
    assert float(tree.norm(unchecked.total)) > 3
    assert float(tree.norm(collect(mechanism, {}, uploads, KEY, codecs).total)) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("mechanism", "deviation"),
    [
        (Gaussian(noise_multiplier=0.7, clip_norm=3.0), 0.7 * 3.0 / 20),
        (Adaptive(noise_multiplier=0.7, clip_norm=3.0, count_noise=0.5), 0.7 / math.sqrt(1 - 0.49) * 3.0 / 20),
    ],
)
def test_the_released_mean_has_the_stated_noise(mechanism, deviation):
    zeros, notes = {"w": torch.zeros(300, 400), "b": torch.zeros(300)}, {"unclipped": torch.tensor(10.0)}
    # 17 clients came of the 20 expected: the divisor must not tell.
    sums = Sums(zeros, notes, torch.tensor(17.0), 17)
    released, _ = mechanism.release(mechanism.init(), sums, 20, KEY)
    noise = tree.vector(mean(released)).double()
    assert released.count == 20
    assert abs(float(noise.mean())) < 5 * deviation / math.sqrt(len(noise))
    assert float(noise.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * len(noise)))
    assert float((noise / deviation).pow(4).mean()) == pytest.approx(3, abs=0.1)  # a normal law's


@pytest.mark.parametrize("mechanism", [Gaussian(), Adaptive()])
def test_noise_is_a_function_of_the_key_alone(mechanism):
    sums = collect(mechanism, mechanism.init(), draw(5), KEY)
    once, again, other = (
        tree.vector(mechanism.release(mechanism.init(), sums, 5, key)[0].total) for key in (KEY, KEY.clone(), KEY + 1)
    )
    assert torch.equal(once, again)
    assert not (once == other).any()


def test_tensors_of_equal_shape_get_noise_of_their_own():
    twins = Sums({"a": torch.zeros(10_000), "b": torch.zeros(10_000)}, {}, torch.tensor(1.0), 1)
    noise = torch.stack(list(Gaussian().release({}, twins, 1, KEY)[0].total.values()))
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 5 / 100


def test_an_empty_cohort_still_releases_noise():
    empty = Sums({"w": torch.zeros(1000)}, {}, torch.tensor(0.0), 0)
    released, _ = Gaussian(noise_multiplier=2.0).release({}, empty, 10, KEY)
    assert float(mean(released)["w"].std()) == pytest.approx(0.2, rel=0.15)


# Adaptive clipping


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.1, 20.0])
def test_the_clip_norm_finds_the_quantile(quantile, start):
    uploads = draw(401)
    norms = vmap(tree.norm)(uploads)
    uploads = tree.map(lambda v: v / norms.reshape(-1, *[1] * (v.dim() - 1)), uploads)
    lengths = torch.exp(torch.linspace(-2, 2, 401))
    uploads = tree.map(lambda v: v * lengths.reshape(-1, *[1] * (v.dim() - 1)), uploads)
    mechanism = Adaptive(noise_multiplier=0, clip_norm=start, target_quantile=quantile, count_noise=1e-6)
    state = mechanism.init()
    for round_ in range(250):
        _, state = mechanism.release(state, collect(mechanism, state, uploads, KEY), 401, keys.fold(KEY, round_))
    assert mechanism.clipped_at(state) == pytest.approx(float(torch.quantile(lengths, quantile)), rel=0.02)


@given(st.floats(0.01, 3), st.integers(1, 500))
def test_bits_and_uploads_together_are_one_mechanism_of_the_stated_multiplier(noise_multiplier, cohort):
    mechanism = Adaptive(noise_multiplier=noise_multiplier)
    assert not list(mechanism.conflicts("uniform", "poisson", cohort))
    # One client moves the sum of uploads by C and the sum of centred bits by 1/2, in units of their noise:
    moved = math.hypot(1 / mechanism.multiplier(cohort), 0.5 / mechanism.bit_noise(cohort))
    assert moved == pytest.approx(1 / noise_multiplier)


def test_the_bits_carry_the_stated_noise():
    mechanism = Adaptive(noise_multiplier=0.5, count_noise=3.0, clip_lr=0.2)
    sums = Sums({"w": torch.zeros(1)}, {"unclipped": torch.tensor(12.0)}, torch.tensor(20.0), 20)
    moves = torch.stack(
        [
            mechanism.release(mechanism.init(), sums, 20, key)[1]["clip_norm"]
            for key in keys.fold(KEY, torch.arange(2000))
        ]
    ).log()
    assert float(moves.mean()) == pytest.approx(-0.2 * (12 / 20 - 0.5), abs=5 * 0.03 / math.sqrt(2000))
    assert float(moves.std()) == pytest.approx(0.2 * 3.0 / 20, rel=0.1)


def test_a_bit_tells_whether_the_upload_was_left_as_it_is():
    uploads, mechanism = draw(50), Adaptive(clip_norm=4.8)
    state = mechanism.init()
    ready, note = vmap(lambda upload: mechanism.on_device(state, upload, SILENT))(uploads)
    untouched = torch.tensor([torch.equal(ready["w"][c], uploads["w"][c]) for c in range(50)])
    assert 0 < int(untouched.sum()) < 50
    assert torch.equal(note["unclipped"], untouched)
    assert tree.nbytes(note) == 50


def test_with_a_still_clip_norm_it_is_the_fixed_mechanism_with_more_noise():
    adaptive = Adaptive(noise_multiplier=0.5, count_noise=1.0, clip_lr=0)
    fixed = Gaussian(noise_multiplier=adaptive.multiplier(8))
    sums = collect(adaptive, adaptive.init(), draw(8), KEY)
    released, state = adaptive.release(adaptive.init(), sums, 8, KEY)
    same, _ = fixed.release({}, sums, 8, keys.fold(KEY, 0))
    assert torch.equal(released.total["w"], same.total["w"])
    assert adaptive.clipped_at(state) == 1.0
    how = Participation(5, 8, 100, True, 2)
    assert adaptive.epsilon(how) == Gaussian(noise_multiplier=0.5).epsilon(how)


def test_too_little_noise_on_the_bits_is_refused():
    (problem,) = Adaptive(noise_multiplier=1.0, count_noise=0.5).conflicts("uniform", "poisson", 10)
    assert problem.startswith("train.privacy.count_noise = 0.5")


# Local


def test_every_device_and_every_round_draws_its_own_noise_of_the_stated_size():
    mechanism = Local(noise_multiplier=0.5, clip_norm=2.0)
    zeros = {"w": torch.zeros(4, 200, 100)}
    rounds = [
        vmap(lambda upload, key: mechanism.on_device({}, upload, key)[0])(zeros, keys.fold(KEY + r, torch.arange(4)))[
            "w"
        ]
        for r in range(2)
    ]
    messages = torch.cat(rounds).reshape(8, -1).double()
    assert torch.allclose(messages.std(1), torch.tensor(1.0).double(), rtol=5 / math.sqrt(2 * 20_000))
    correlation = torch.corrcoef(messages) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)
    alone, _ = mechanism.on_device({}, tree.take(zeros, 3), keys.fold(KEY, 3))
    assert torch.equal(alone["w"], rounds[0][3])


@given(st.sampled_from([0.5, 2.0, 1e4, 1e25]))
def test_before_its_noise_a_message_is_clipped(magnitude):
    mechanism = Local(noise_multiplier=0, clip_norm=1.0)
    message, _ = mechanism.on_device({}, tree.scale(tree.take(draw(1), 0), magnitude), KEY)
    assert float(tree.norm(message)) <= 1 + 1e-6


def test_local_epsilon_is_the_busiest_clients():
    def epsilon(**changes: int) -> float:
        how = Participation(rounds=50, cohort=10, population=100, poisson=False, busiest=9)
        return Local(noise_multiplier=3.0).epsilon(how._replace(**changes))

    # Two messages differ by up to two clip norms; nine messages are one of a third of the noise.
    assert epsilon() == accountant.gaussian(3.0 / 2 / 3, 1, 1e-5)
    assert epsilon(rounds=500) == epsilon(cohort=20) == epsilon(poisson=True) == epsilon()
    assert epsilon(busiest=10) > epsilon()
    assert epsilon(busiest=0) == 0


# What is promised, and when it is refused


def test_central_epsilon_counts_an_exchanged_client_twice_and_an_added_one_once():
    mechanism = Gaussian(noise_multiplier=1.2, delta=1e-6)
    coins = Participation(rounds=30, cohort=10, population=200, poisson=True, busiest=5)
    assert mechanism.epsilon(coins) == accountant.poisson(1.2, 0.05, 30, 1e-6)
    assert mechanism.epsilon(coins._replace(poisson=False)) == accountant.fixed(0.6, 10, 200, 30, 1e-6)


def test_delta_is_below_one_in_the_population():
    assert Gaussian().target_delta(100) == 1e-5
    assert Gaussian().target_delta(10**6) == pytest.approx(10**-6.6)
    assert Gaussian(delta=1e-3).target_delta(100) == 1e-3
    assert NoPrivacy().target_delta(100) is None


@pytest.mark.parametrize("name", ["gaussian", "adaptive", "local"])
def test_weights_and_chances_that_follow_from_the_data_are_refused(name):
    train = {"privacy": {"name": name}, "algorithm": {"name": "fedavg", "weighting": "uniform"}}
    build({"train": train})
    build({"train": train | {"sampling": {"name": "poisson"}}})
    with pytest.raises(ParamsRefused, match=r"train\.algorithm\.weighting = 'samples'"):
        build({"train": train | {"algorithm": {"name": "fedavg", "weighting": "samples"}}})
    with pytest.raises(ParamsRefused, match=r"train\.sampling\.name = 'by_size'"):
        build({"train": train | {"sampling": {"name": "by_size"}}})
