"""Small unsigned integers packed bit by bit into bytes: 3 bits take 3 bits, up to the padding of the last byte."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` ``[n]`` below ``2**bits`` as uint8 ``[ceil(n * bits / 8)]``, lowest bit first."""
    flat = _bits(codes, bits)
    octets = pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    return _number(octets)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` codes that :func:`pack` packed, as uint8 ``[count]``."""
    return _number(_bits(words, 8)[: count * bits].reshape(count, bits))


def _bits(numbers: Tensor, bits: int) -> Tensor:
    places = torch.arange(bits, dtype=torch.uint8, device=numbers.device)
    return ((numbers.to(torch.uint8)[:, None] >> places) & 1).reshape(-1)


def _number(bits: Tensor) -> Tensor:
    places = torch.arange(bits.shape[-1], dtype=torch.uint8, device=bits.device)
    return (bits << places).sum(-1, dtype=torch.uint8)
