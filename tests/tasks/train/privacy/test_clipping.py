"""Clipping tensor by tensor: the same sensitivity as clipping the whole, within bounds that make up the clip norm."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.func import vmap

from tasks import keys, tree
from tasks.params import build
from tasks.train.algorithms import FedAvg
from tasks.train.privacy.clipping import Dim, Layers, Uniform, Whole
from tasks.train.privacy.gaussian import Gaussian
from tasks.train.privacy.local import Local
from tasks.train.settings import TrainSettings
from tasks.tree import Tree
from tests.tasks.train.runs import SIZES, run

KEY = torch.tensor(8)
SHAPES = {"w": (20, 30), "b": (20,), "gain": (3,), "one": ()}
MODES = [Whole(), Uniform(), Dim(), Uniform(normalise=True), Dim(normalise=True)]
LAYERS = [mode for mode in MODES if isinstance(mode, Layers)]


def draw(scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0), key: Tensor = KEY) -> Tree:
    return {
        name: scale * keys.normal(keys.fold(key, i), shape)
        for i, ((name, shape), scale) in enumerate(zip(SHAPES.items(), scales, strict=True))
    }


def length(values: Tensor) -> float:
    return float(values.double().norm())


magnitudes = st.tuples(*[st.sampled_from([0.0, 1e-20, 1e-4, 0.1, 1.0, 30.0, 1e5, 1e15])] * 4)


@pytest.mark.parametrize("mode", MODES, ids=repr)
@given(scales=magnitudes, norm=st.floats(1e-3, 1e3))
def test_no_upload_comes_out_longer_than_the_clip_norm(mode, scales, norm):
    clipped = mode.clip(draw(scales), norm)
    assert float(tree.norm(clipped)) <= norm * (1 + 1e-5)
    if isinstance(mode, Layers) and not bool(mode.fits(draw(scales), norm)):
        for name, share in mode.shares(clipped).items():
            assert length(clipped[name]) <= norm * share * (1 + 1e-5)


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_a_client_more_moves_the_sum_by_no_more_than_the_clip_norm(mode):
    """A thousand draws of another client's upload, in double precision, behind a sum of others."""
    uploads = {n: keys.normal(keys.fold(KEY, i), (1000, *s)).double() for i, (n, s) in enumerate(SHAPES.items())}
    factors = torch.exp(keys.normal(KEY, (1000,)).double() * 4)
    stretched = tree.map(lambda v: v * factors.reshape(-1, *[1] * (v.dim() - 1)), uploads)
    clipped = vmap(lambda upload: mode.clip(upload, 0.7))(stretched)
    others = {name: 100.0 * value.double() for name, value in draw().items()}
    moved = torch.stack([(others[n] + v - others[n]).reshape(1000, -1).square().sum(1) for n, v in clipped.items()])
    assert float(moved.sum(0).sqrt().max()) <= 0.7 * (1 + 1e-6)
    assert float(moved.sum(0).sqrt().max()) > 0.69


@pytest.mark.parametrize("mode", LAYERS, ids=repr)
def test_the_squares_of_the_bounds_add_up_to_that_of_the_clip_norm(mode):
    shares = mode.shares(draw())
    assert sum(share**2 for share in shares.values()) == pytest.approx(1.0, abs=1e-12)


def test_the_bounds_are_those_of_the_definition():
    assert set(Uniform().shares(draw()).values()) == {0.5}
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    assert Dim().shares(draw()) == {name: math.sqrt(size / 624) for name, size in sizes.items()}


@pytest.mark.parametrize("mode", [Whole(), Uniform(), Dim()], ids=repr)
def test_what_is_within_its_bounds_is_left_to_the_bit(mode):
    values = draw((0.01, 0.01, 0.01, 0.01))
    assert all(torch.equal(value, values[name]) for name, value in mode.clip(values, 50.0).items())
    assert bool(mode.fits(values, 50.0))


def test_one_tensor_alone_is_clipped_alike_in_every_mode():
    alone = {"w": draw()["w"]}
    for norm in (0.1, 1e3):
        whole = Whole().clip(alone, norm)["w"]
        for mode in LAYERS:
            torch.testing.assert_close(mode.clip(alone, norm)["w"], whole)


def test_a_long_tensor_uses_up_the_norm_of_the_others_only_if_all_are_clipped_as_one():
    """What per-tensor clipping is for: a short change survives beside a long one."""
    values = draw((0.01, 100.0, 100.0, 0.0))
    norm = 10.0
    assert length(Whole().clip(values, norm)["w"]) < 0.05 * length(values["w"])
    for mode in (Uniform(), Dim()):
        assert torch.equal(mode.clip(values, norm)["w"], values["w"])


def test_normalised_tensors_are_as_long_as_their_bounds_short_ones_too():
    values = draw((0.01, 100.0, 100.0, 1e-3))
    for mode in (Uniform(normalise=True), Dim(normalise=True)):
        clipped = mode.clip(values, 10.0)
        for name, share in mode.shares(values).items():
            assert length(clipped[name]) == pytest.approx(10.0 * share, rel=1e-4)
        # An upload that is short as a whole is left alone.
        assert all(torch.equal(value, values[name]) for name, value in mode.clip(values, 1e4).items())


@pytest.mark.parametrize("mode", [(Uniform(), Uniform(normalise=True)), (Dim(), Dim(normalise=True))], ids=repr)
def test_where_every_tensor_is_over_its_bound_normalising_changes_nothing(mode):
    plain, normalised = (each.clip(draw((1.0, 50.0, 90.0, 900.0)), 1e-2) for each in mode)
    for name, value in plain.items():
        torch.testing.assert_close(normalised[name], value)


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_noise_added_on_the_devices_is_as_much_in_the_mean_as_noise_added_once(mode):
    """With S times the variance each: the mean of the S messages less that without noise is N(0, (C sigma)^2)."""
    clients, norm, sigma = 25, 0.3, 0.04
    device = Local(noise_multiplier=sigma * math.sqrt(clients), clip_norm=norm, clipping=mode)
    server = Gaussian(noise_multiplier=sigma * clients, clip_norm=norm, clipping=mode)
    uploads = {"w": keys.normal(KEY, (clients, 60, 80))}
    sent = vmap(lambda upload, key: device.on_device({}, upload, key)[0])(
        uploads, keys.fold(KEY, torch.arange(clients))
    )
    plain = vmap(lambda upload: mode.clip(upload, norm))(uploads)
    noise = (sent["w"] - plain["w"]).mean(0).flatten().double()
    deviations = [float(noise.square().sum()) / (norm * sigma) ** 2]
    from tasks.train.privacy import Sums

    zeros = Sums({"w": torch.zeros(60, 80)}, {}, torch.tensor(float(clients)), clients)
    released, _ = server.release({}, zeros, clients, KEY)
    deviations.append(float((released.total["w"] / released.weight).double().square().sum()) / (norm * sigma) ** 2)
    for statistic in deviations:
        assert 1e-4 < stats.chi2.cdf(statistic, 4800) < 1 - 1e-4


@pytest.mark.parametrize("mode", [Whole(), Uniform(), Dim()], ids=repr)
def test_without_noise_and_with_room_enough_it_is_uniform_fedavg_to_the_bit(data, mode):
    algorithm = FedAvg(batch_size=4, weighting="uniform")
    plain = TrainSettings(rounds=3, cohort=len(SIZES), algorithm=algorithm)
    quiet = plain.model_copy(update={"privacy": Gaussian(noise_multiplier=0, clip_norm=1e9, clipping=mode)})
    expected = run(data, plain, 3).model
    assert all(torch.equal(value, expected[name]) for name, value in run(data, quiet, 3).model.items())


@pytest.mark.parametrize("name", ["gaussian", "adaptive", "local"])
@pytest.mark.parametrize("clipping", ["whole", "uniform", "dim"])
def test_every_mechanism_takes_every_way_of_clipping(data, name, clipping):
    document = {
        "train": {
            "rounds": 3, "cohort": 6, "algorithm": {"name": "fedavg", "weighting": "uniform", "batch_size": 4},
            "privacy": {"name": name, "noise_multiplier": 1e-6, "clip_norm": 0.01, "clipping": {"name": clipping}},
        }
    }  # fmt: skip
    train = build(document).train
    before, after = run(data, train, 2), run(data, train, 3)
    bound = train.privacy.clipped_at(before.guard)
    step = tree.subtract(after.model, before.model)
    assert 0 < float(tree.norm(step)) <= bound * (1 + 1e-3)
