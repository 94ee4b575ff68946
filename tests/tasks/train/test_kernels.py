"""Operations that are traced in another way than PyTorch's own, against those; and what is compiled of them."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from tasks import keys
from tasks.models import Network
from tasks.train.engine import compiler
from tasks.train.engine.kernels import ON_CPU
from tasks.train.engine.program import _takes_channels_last

CLIENTS, BATCH = 3, 4


def traced(function, *args):
    return make_fx(function, decomposition_table=ON_CPU)(*args)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "kernel", "padding"), [(1, 3, 1), (1, 3, 0), (2, 2, 1), (4, 2, 0), (3, 5, 2)])
def test_a_convolution_of_few_taps_is_their_sum(channels, kernel, padding, bias):
    """Whether it is written out (up to 16 taps) or left alone, it is the convolution, with a group a client."""
    x, weight = drawn(BATCH, CLIENTS * channels, 7, 6), drawn(CLIENTS * 2, channels, kernel, kernel)
    offset = drawn(CLIENTS * 2) if bias else None

    def apply(x, weight, *offset):
        return F.conv2d(x, weight, *offset, padding=padding, groups=CLIENTS)

    args = (x, weight) if offset is None else (x, weight, offset)
    graph = traced(apply, *args)
    torch.testing.assert_close(graph(*args), apply(*args), rtol=1e-4, atol=1e-5)
    called = {node.target for node in graph.graph.nodes}
    assert (torch.ops.aten.convolution.default in called) == (channels * kernel**2 > 16)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_that_skips_pixels_is_left_alone(stride):
    x, weight = drawn(BATCH, CLIENTS, 8, 8), drawn(CLIENTS, 1, 3, 3)

    def apply(x, weight):
        return F.conv2d(x, weight, stride=stride, dilation=2, groups=CLIENTS)

    torch.testing.assert_close(traced(apply, x, weight)(x, weight), apply(x, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (2, 1, 0)])
def test_slopes_go_through_poolings_and_convolutions_as_ever(kernel, stride, padding):
    """Of all clients at once, ties among the pooled values included: the image has many equal pixels."""
    network = Network(_small(kernel, stride, padding))
    params = {name: drawn(CLIENTS, *value.shape) for name, value in network.parameters.items()}
    x = drawn(CLIENTS, BATCH, 1, 8, 8).round()

    def slopes(params, x):
        return vmap(grad(lambda p, x: functional_call(network.module, p, (x,)).square().sum()))(params, x)

    expected, found = slopes(params, x), traced(slopes, params, x)(params, x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-3)


def _small(kernel: int, stride: int, padding: int) -> nn.Module:
    pool = nn.MaxPool2d(kernel, stride, padding)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(2, 3, 3, padding=1), pool)


def test_what_cannot_be_compiled_runs_as_it_is(capsys):
    """A branch on a value stops the trace, which is said once for each shape; the results are those of the function."""
    run = compiler.whole(lambda x: x + 1 if bool(x.sum() > 0) else x - 1, "this and that")
    assert float(run(torch.ones(1))) == 2.0
    assert float(run(-torch.ones(1))) == -2.0
    assert capsys.readouterr().out.count("this and that cannot be compiled") == 1


def test_arguments_that_were_the_same_tensor_once_are_still_two():
    """As where a client starts from a model that it was sent, and has moved away from by the next step."""
    program = compiler.whole(lambda a, b: a - 2 * b, "this")
    x, y = drawn(3), drawn(3) + 1
    torch.testing.assert_close(program(x, x), -x)
    torch.testing.assert_close(program(x, y), x - 2 * y)


@pytest.mark.parametrize("draw", [keys.bits, keys.normal])
def test_what_is_drawn_in_a_program_is_what_is_drawn_anywhere(draw):
    """Whatever the number of draws, of which the last few are worked out in another way than the rest."""
    program = compiler.whole(vmap(lambda key: tuple(draw(key, (count,)) for count in (3, 15, 16, 20))), "this")
    for key in (5, 2**62):
        own = torch.arange(key, key + 3)
        for count, drawn_ in zip((3, 15, 16, 20), program(own), strict=True):
            torch.testing.assert_close(drawn_, torch.stack([draw(one, (count,)) for one in own]), rtol=1e-4, atol=1e-6)


def test_a_program_is_good_for_its_shapes_alone():
    """Other shapes, strides and names get programs of their own."""
    run = compiler.whole(lambda tree: {name: 2 * value.sum(0) for name, value in tree.items()}, "sums")
    for value in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(3, 2).T):
        assert torch.equal(run({"a": value})["a"], 2 * value.sum(0))
    assert run({"b": torch.ones(2, 3)}).keys() == {"b"}


@pytest.mark.parametrize(("channels", "stride", "takes"), [(4, 2, False), (4, 1, True), (16, 2, True)])
def test_single_pixels_of_few_channels_are_not_laid_out_with_the_channels_innermost(channels, stride, takes):
    """PyTorch's kernel for every other pixel of 4 channels writes past its memory on processors with AVX2."""
    network = Network(nn.Sequential(nn.Conv2d(channels, channels, 1, stride)))
    assert _takes_channels_last(network, torch.zeros(1, channels, 8, 8)) is takes


def test_what_is_compiled_is_kept_where_it_is_told_to(tmp_path, monkeypatch):
    """For later runs; a folder that the user has named stays the one."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    compiler.keep_in(tmp_path / "kept")
    compiler.whole(lambda x: (x.sin() + 1,), "a sine")(torch.ones(3))
    assert any((tmp_path / "named").rglob("*.so")) and not (tmp_path / "kept").exists()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiler.keep_in(tmp_path / "kept")
    compiler.whole(lambda x: (x.cos() + 2,), "a cosine")(torch.ones(3))
    assert any((tmp_path / "kept").rglob("*.so"))
