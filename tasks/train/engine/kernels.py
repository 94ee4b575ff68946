"""How some operations are traced on a CPU, where Inductor's own way with them is slow.

All of it is about images of stacked clients, whose convolutions become one with a group a client. The results are those
of the operations themselves, up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

aten = torch.ops.aten
_LIBRARY = Library("fedloom", "FRAGMENT")
TAPS = 16
"""Products that make one output value, up to which a grouped convolution is written out as a sum of them."""


def _adopt(name: str) -> Any:
    """An operation that does what ``name`` of ATen does, and that Inductor has to leave as it is."""
    original = getattr(aten, name).default
    schema = str(original._schema)
    _LIBRARY.define(name + schema[schema.index("(") :])
    _LIBRARY.impl(name, original, "CompositeExplicitAutograd")
    return getattr(torch.ops.fedloom, name)


_pool, _pool_backward = _adopt("max_pool2d_with_indices"), _adopt("max_pool2d_with_indices_backward")
_pad, _clone = _adopt("constant_pad_nd"), _adopt("clone")


def _innermost(x: Tensor) -> Tensor:
    """``x`` with the channels innermost, if it is a batch of images."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _max_pool(x: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """By PyTorch's kernel. Inductor writes no better one, and that of the slope follows."""
    return _pool(_innermost(x), *how)


def _max_pool_backward(slope: Tensor, x: Tensor, *how: Any) -> Tensor:
    """By PyTorch's kernel, which is about ten times as fast as what Inductor writes: that scatters value by value."""
    *how, indices = how
    return _pool_backward(_innermost(slope), _innermost(x), *how, _innermost(indices))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """A sum over the taps of a kernel, where a group has so few that a matrix product for each has nothing to do.

    Edges and taps are laid out beforehand, by operations that Inductor leaves alone: it would look for them again at
    every product.
    """
    plain = x.dim() == 4 and not transposed and {*stride, *dilation} == {1}
    if not plain or groups == 1 or weight[0].numel() > TAPS:
        return NotImplemented
    outputs, channels, high, wide = weight.shape
    x = _pad(x.permute(0, 2, 3, 1), [0, 0, padding[-1], padding[-1], padding[0], padding[0]])
    x = x.reshape(*x.shape[:3], groups, channels, 1)
    weight = weight.reshape(groups, outputs // groups, channels, high, wide).permute(2, 3, 4, 0, 1)
    weight = _clone(weight, memory_format=torch.contiguous_format)
    height, width = x.shape[1] - high + 1, x.shape[2] - wide + 1
    total = torch.zeros((), dtype=x.dtype) if bias is None else bias.reshape(groups, -1)
    for c in range(channels):
        for i in range(high):
            for j in range(wide):
                total = total + x[:, i : i + height, j : j + width, :, c] * weight[c, i, j]
    return total.flatten(3).permute(0, 3, 1, 2)


def _convolution_backward(slope: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """On images whose channels are innermost, as those are that it gets; or they would be laid out anew for it."""
    laid_out = (images.is_contiguous(memory_format=torch.channels_last) for images in (slope, x))
    if slope.dim() != 4 or all(laid_out):
        return NotImplemented
    return aten.convolution_backward(_innermost(slope), _innermost(x), *rest)


ON_CPU = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}
