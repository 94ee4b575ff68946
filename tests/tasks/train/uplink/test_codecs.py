"""Each codec by itself: what it keeps, what it loses, what it weighs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save
from scipy import stats
from torch import Tensor
from torch.func import vmap

from tasks import keys, tree
from tasks.train.uplink import Chain
from tasks.train.uplink.clip import Clip
from tasks.train.uplink.codec import Codec
from tasks.train.uplink.dgc import DeepGradientCompression as DGC
from tasks.train.uplink.quantize import Quantize
from tasks.train.uplink.randomk import RandomK
from tasks.train.uplink.sign import Sign
from tasks.train.uplink.topk import TopK
from tasks.tree import Tree

CLIENTS = 6
SHAPES = {"delta/conv": (8, 1, 3, 3), "delta/bias": (8,), "delta/linear": (10, 300), "delta/scalar": ()}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
TOTAL = sum(SIZES.values())
KEY = torch.tensor(2024)


def uploads(clients: int = CLIENTS) -> Tree:
    """Stacked uploads of unlike tensors, one of them with many equal and zero entries."""
    seeds = enumerate(SHAPES.items())
    values = {name: keys.normal(keys.fold(KEY, i), (clients, *shape)) for i, (name, shape) in seeds}
    values["delta/conv"] = values["delta/conv"].round().clamp(-1, 1)
    return values


def several(values: Tree, codec: Codec, times: int) -> Tree:
    """The decoded messages of ``times`` keys, stacked."""
    chain = Chain((codec,), values)
    memory = chain.memory()
    return vmap(lambda key: chain.decode(chain.encode(values, memory, key)[0]))(keys.fold(KEY, torch.arange(times)))


def trip(codec: Codec, values: Tree, key: Tensor = KEY) -> Tree:
    carried, side = codec.encode(values, key)
    return codec.decode(carried, side, values)


def index_bytes(size: int) -> int:
    return 1 if size <= 256 else 2 if size <= 65536 else 4


def kept(size: int, density: float = 0.1) -> int:
    return max(1, round(density * size))


def quantised(sizes, bits: int, bucket: int | None = None) -> int:
    return sum(-(-d * bits // 8) + 4 * -(-d // (bucket or d)) for d in sizes)


CHAINS: dict[str, tuple[tuple[Codec, ...], int]] = {
    "nothing": ((), 4 * TOTAL),
    "clip": ((Clip(),), 4 * TOTAL),
    "topk": ((TopK(),), sum(kept(d) * (4 + index_bytes(d)) for d in SIZES.values())),
    "topk upload": ((TopK(scope="upload", density=0.01),), kept(TOTAL, 0.01) * (4 + index_bytes(TOTAL))),
    "topk k": ((TopK(k=20),), sum(min(20, d) * (4 + index_bytes(d)) for d in SIZES.values())),
    "topk dense": (
        (TopK(dense_below=2),),
        sum(kept(d) * (4 + index_bytes(d)) if len(SHAPES[n]) > 1 else 4 * d for n, d in SIZES.items()),
    ),
    "topk upload dense": (
        (TopK(scope="upload", density=0.01, dense_below=2),),
        kept(TOTAL - 9, 0.01) * (4 + index_bytes(TOTAL - 9)) + 4 * 9,
    ),
    "randomk dense": (
        (RandomK(dense_below=2),),
        8 + sum(4 * kept(d) if len(SHAPES[n]) > 1 else 4 * d for n, d in SIZES.items()),
    ),
    "dgc": (
        (DGC(density=0.01, warmup_rounds=0),),
        sum(math.ceil(d / 100) * (4 + index_bytes(d)) if len(SHAPES[n]) > 1 else 4 * d for n, d in SIZES.items()),
    ),
    "randomk": ((RandomK(),), 8 + 4 * sum(map(kept, SIZES.values()))),
    "randomk unbiased": (
        (RandomK(unbiased=True, error_feedback=False, density=0.3),),
        8 + 4 * sum(kept(d, 0.3) for d in SIZES.values()),
    ),
    "quantize": ((Quantize(),), quantised(SIZES.values(), 4)),
    "quantize bucket": ((Quantize(bits=3, norm="l2", bucket=64),), quantised(SIZES.values(), 3, 64)),
    "quantize 1": ((Quantize(bits=1),), quantised(SIZES.values(), 1)),
    "quantize 8": ((Quantize(bits=8, error_feedback=True),), quantised(SIZES.values(), 8)),
    "sign": ((Sign(),), sum(-(-d // 8) + 4 for d in SIZES.values())),
    "clip topk quantize": (
        (Clip(), TopK(), Quantize(bits=5)),
        quantised(map(kept, SIZES.values()), 5) + sum(kept(d) * index_bytes(d) for d in SIZES.values()),
    ),
    "randomk sign": ((RandomK(), Sign()), 8 + sum(-(-kept(d) // 8) + 4 for d in SIZES.values())),
}


@pytest.mark.parametrize("codecs", [codecs for codecs, _ in CHAINS.values()], ids=list(CHAINS))
def test_stacked_clients_send_what_each_would_alone_to_the_bit(codecs):
    values, like = uploads(), tree.take(uploads(), 0)
    chain = Chain(codecs, like)
    clients = keys.fold(KEY, torch.arange(CLIENTS))
    memory = tree.stack([tree.map(lambda v, c=c: v + 0.1 * c, chain.memory()) for c in range(CLIENTS)])
    payload, left = vmap(chain.encode)(values, memory, clients)
    arrived = vmap(chain.decode)(payload)
    for c in range(CLIENTS):
        alone, kept_ = chain.encode(tree.take(values, c), tree.take(memory, c), clients[c])
        for stacked, one in ((payload, alone), (left, kept_), (arrived, chain.decode(alone))):
            assert set(stacked) == set(one)
            for name, value in one.items():
                assert value.dtype == stacked[name].dtype
                assert torch.equal(stacked[name][c], value), name


@pytest.mark.parametrize(("codecs", "expected"), CHAINS.values(), ids=list(CHAINS))
def test_bytes_are_those_of_the_serialised_message_and_of_the_closed_form(codecs, expected):
    like = tree.take(uploads(), 0)
    chain = Chain(codecs, like)
    payload, _ = chain.encode(like, chain.memory(), KEY)
    file = save({name: value.contiguous() for name, value in payload.items()})
    assert tree.nbytes(payload) == expected
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == expected


@pytest.mark.parametrize("codecs", [codecs for codecs, _ in CHAINS.values()], ids=list(CHAINS))
def test_an_upload_of_zeros_arrives_as_zeros(codecs):
    like = tree.zeros_like(tree.take(uploads(), 0))
    chain = Chain(codecs, like)
    payload, left = chain.encode(like, chain.memory(), KEY)
    assert all(not value.any() for value in (*chain.decode(payload).values(), *left.values()))


@pytest.mark.parametrize(
    "codec",
    [
        TopK(density=1.0),
        TopK(density=1.0, scope="upload"),
        TopK(k=10**6),
        RandomK(density=1.0),
        RandomK(density=1.0, unbiased=True, error_feedback=False),
        Clip(norm=1e6),
    ],
)
def test_keeping_everything_is_the_identity_to_the_bit(codec):
    values = tree.take(uploads(), 0)
    for name, value in trip(codec, values).items():
        assert torch.equal(value, values[name])


@pytest.mark.parametrize("codec", [RandomK(density=0.5), Quantize(bits=2)])
def test_equal_tensors_of_an_upload_draw_apart(codec):
    u = torch.rand(2000, generator=torch.Generator().manual_seed(3))
    errors = torch.stack(list(trip(codec, {"a": u, "b": u}).values())) - u
    # By the entries, as a larger one loses more: the coins, not the sizes, must be unlike.
    assert abs(float(torch.corrcoef(errors / u)[0, 1])) < 5 / math.sqrt(len(u))


# Top-k


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.floats(0.01, 1))
def test_topk_is_the_naive_choice_and_a_contraction(entries, density):
    u, codec = torch.tensor(entries), TopK(density=density)
    arrived = trip(codec, {"u": u})["u"]
    k = codec.kept(len(u))
    assert torch.equal(arrived[arrived != 0], u[arrived != 0])
    assert sorted(arrived.abs().tolist())[-k:] == sorted(u.abs().tolist())[-k:]
    lost = float((u - arrived).double().square().sum())
    assert lost <= (1 - k / len(u)) * float(u.double().square().sum()) * (1 + 1e-12)


@pytest.mark.parametrize("codec", [TopK(density=0.01), RandomK(density=0.01)])
def test_a_sparsifier_can_begin_with_more_entries(codec):
    assert codec.at(1) == codec
    warming = codec.model_copy(update={"warmup": (0.5, 0.1), "warmup_rounds": 6})
    values = {"u": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    sent = [int((trip(warming.at(round_), values)["u"] != 0).sum()) for round_ in (1, 3, 4, 6, 7, 100)]
    assert sent == [500, 500, 100, 100, 10, 10]


@pytest.mark.parametrize("codec", [TopK(dense_below=2), TopK(dense_below=2, scope="upload"), RandomK(dense_below=2)])
def test_tensors_of_few_dimensions_can_be_sent_whole(codec):
    values = tree.take(uploads(), 0)
    arrived, plain = trip(codec, values), trip(codec.model_copy(update={"dense_below": 0}), values)
    assert list(arrived) == list(values)
    for name, value in values.items():
        whole = value.dim() < 2
        assert torch.equal(arrived[name], value) == whole
        assert whole or codec.name == "randomk" or codec.scope == "upload" or torch.equal(arrived[name], plain[name])
    everything = trip(codec.model_copy(update={"dense_below": 9}), values)
    assert all(torch.equal(everything[name], value) for name, value in values.items())


def test_topk_over_the_upload_is_topk_of_the_vector():
    values = tree.take(uploads(), 0)
    together = tree.vector(trip(TopK(density=0.02, scope="upload"), values))
    assert torch.equal(together, trip(TopK(density=0.02), {"v": tree.vector(values)})["v"])


@pytest.mark.parametrize(("size", "width"), [(256, 1), (257, 2), (32769, 2), (65536, 2), (65537, 4)])
def test_an_index_is_as_narrow_as_the_tensor_allows_and_still_finds_its_place(size, width):
    u = torch.zeros(size)
    u[[0, size // 2, size - 1]] = torch.tensor([1.0, 2.0, 3.0])
    codec = TopK(k=3)
    _, side = codec.encode({"u": u}, KEY)
    assert side["u"].element_size() == width
    assert torch.equal(trip(codec, {"u": u})["u"], u)


# Random-k


def test_random_positions_are_uniform_and_follow_from_the_seed_on_the_wire():
    u = torch.arange(1.0, 13.0)
    codec = RandomK(k=3)
    arrived = several({"u": u}, codec, 4000)["u"]
    assert ((arrived != 0).sum(1) == 3).all()
    assert stats.chisquare((arrived != 0).sum(0).numpy()).pvalue > 1e-3
    _, side = codec.encode({"u": u}, KEY)
    assert tree.nbytes(side) == 8


def test_scaled_random_entries_have_the_upload_as_mean_and_the_stated_error():
    values = {"u": torch.randn(40, generator=torch.Generator().manual_seed(1))}
    arrived = several(values, RandomK(density=0.25, unbiased=True, error_feedback=False), 20_000)["u"]
    assert_mean(arrived, values["u"])
    errors = (arrived - values["u"]).square().sum(1)
    assert_mean(errors[:, None], (4 - 1) * values["u"].square().sum()[None])


def test_unscaled_random_entries_are_a_contraction_on_average():
    values = {"u": torch.randn(40, generator=torch.Generator().manual_seed(1))}
    errors = (several(values, RandomK(density=0.25), 20_000)["u"] - values["u"]).square().sum(1)
    assert_mean(errors[:, None], (1 - 0.25) * values["u"].square().sum()[None])


def test_scaling_up_and_feeding_back_are_refused_together():
    with pytest.raises(ValidationError, match="diverges"):
        RandomK(unbiased=True)


# Quantisation


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("norm", ["l2", "max"])
def test_quantisation_is_unbiased_with_the_variance_of_a_rounding_coin(bits, norm):
    u = torch.randn(30, generator=torch.Generator().manual_seed(bits))
    codec = Quantize(bits=bits, norm=norm)
    arrived = several({"u": u}, codec, 10_000)["u"]
    assert_mean(arrived, u)
    scale = float(u.norm() if norm == "l2" else u.abs().max())
    remainder = (codec.levels * (1 + u / scale)) % 1
    variance = (remainder * (1 - remainder)).sum() * (scale / codec.levels) ** 2
    errors = (arrived - u).square().sum(1)
    assert_mean(errors[:, None], variance[None])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_error_keeps_within_the_bound_of_qsgd(bits, size):
    u = torch.randn(size, generator=torch.Generator().manual_seed(size))
    s = Quantize(bits=bits).levels
    error = float((several({"u": u}, Quantize(bits=bits, norm="l2"), 300)["u"] - u).square().sum(1).mean())
    assert error <= min(size / s**2, math.sqrt(size) / s) * float(u.square().sum()) * 1.05


@pytest.mark.parametrize("bits", range(2, 9))
def test_an_entry_on_a_level_is_never_moved(bits):
    codec = Quantize(bits=bits)
    levels = torch.arange(-codec.levels, codec.levels + 1)
    arrived = several({"u": 2.0 * levels}, codec, 2000)["u"]
    assert torch.allclose(arrived, (2.0 * levels).expand_as(arrived), rtol=1e-6)
    assert not arrived[:, int(codec.levels)].any()


def test_a_bucket_does_not_feel_the_outlier_of_another():
    quiet = torch.rand(64, generator=torch.Generator().manual_seed(0))
    u = torch.cat([quiet, torch.tensor([1e6]), torch.zeros(20)])
    arrived = trip(Quantize(bits=4, bucket=64), {"u": u})["u"]
    assert float((arrived[:64] - quiet).abs().max()) <= 1 / 7
    assert torch.equal(arrived[64:], u[64:])


# Sign


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_what_the_sign_loses_is_its_closed_form(entries):
    u = torch.tensor(entries)
    arrived = trip(Sign(), {"u": u})["u"].double()
    u = u.double()
    squares = float(u.square().sum())
    expected = squares - float(u.abs().sum()) ** 2 / len(u)
    assert math.isclose(float((u - arrived).square().sum()), expected, rel_tol=1e-4, abs_tol=1e-5 * squares + 1e-30)


def test_equal_magnitudes_survive_the_sign():
    u = 0.25 * keys.rademacher(KEY, (100,))
    assert torch.equal(trip(Sign(), {"u": u})["u"], u)


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """The mean of ``samples`` ``[times, d]`` is ``expected`` ``[d]`` within five standard errors."""
    error = (samples.double().mean(0) - expected.double()).abs()
    spread = samples.double().std(0) / math.sqrt(len(samples))
    assert bool((error <= 5 * spread + 1e-5 * expected.abs().max()).all()), error / spread
