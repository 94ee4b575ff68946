"""Bits in bytes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from tasks.train.uplink.packing import pack, unpack

CODES = st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1))))


@given(CODES)
def test_codes_stand_in_a_row_of_bits_with_no_gap(drawn):
    bits, codes = drawn
    words = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert len(words) == -(-len(codes) * bits // 8)
    assert int.from_bytes(bytes(words.tolist()), "little") == sum(code << bits * i for i, code in enumerate(codes))
    assert unpack(words, bits, len(codes)).tolist() == codes


def test_stacked_packing_is_packing_each():
    codes = torch.randint(0, 8, (6, 13), dtype=torch.uint8)
    words = vmap(lambda row: pack(row, 3))(codes)
    assert torch.equal(words, torch.stack([pack(row, 3) for row in codes]))
    assert torch.equal(vmap(lambda row: unpack(row, 3, 13))(words), codes)
