"""The container of all numbers."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from tasks import tree
from tasks.tree import Tree

DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool]


@st.composite
def trees(draw, dtypes=DTYPES) -> Tree:
    """A tree of random names, shapes (with empty tensors and scalars), dtypes and values."""
    shapes = st.lists(st.integers(0, 4), max_size=3)
    fields = st.tuples(st.sampled_from(dtypes), shapes)
    named = draw(st.dictionaries(st.text("abc/.", min_size=1, max_size=4), fields, min_size=1, max_size=5))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return {name: (100 * torch.randn(shape)).to(dtype) for name, (dtype, shape) in named.items()}


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def identical(a: Tree, b: Tree) -> bool:
    return list(a) == list(b) and all(same(a[name], b[name]) for name in a)


@given(trees(), trees())
def test_parts_come_back_as_they_were_joined(a, b):
    joined = tree.join(first=a, second=b)
    assert identical(tree.part(joined, "first"), a)
    assert identical(tree.part(joined, "second"), b)
    assert len(joined) == len(a) + len(b)


@given(trees())
def test_packing_loses_nothing(values):
    packed = tree.pack(values)
    assert packed.data.nbytes == tree.nbytes(values)
    packed.data.setflags(write=False)
    assert identical(tree.unpack(packed), values)


@given(trees())
def test_bytes_are_those_in_a_file_after_its_header(values):
    file = save(values)
    header = 8 + int.from_bytes(file[:8], "little")
    assert set(json.loads(file[8:header])) - {"__metadata__"} == set(values)
    assert tree.nbytes(values) == len(file) - header


@given(trees([torch.float32, torch.float64]))
def test_a_vector_takes_the_shape_of_its_tree_again(values):
    assert identical(tree.like(tree.vector(values), values), values)
    assert len(tree.vector(values)) == sum(value.numel() for value in values.values())


@given(trees([torch.float64]), st.floats(-10, 10))
def test_arithmetic_is_that_of_the_vectors(a, factor):
    b = tree.map(torch.randn_like, a)
    u, v = tree.vector(a), tree.vector(b)
    assert torch.equal(tree.vector(tree.add(a, b, factor)), u + factor * v)
    assert torch.equal(tree.vector(tree.subtract(a, b)), u - v)
    assert torch.equal(tree.vector(tree.scale(a, factor)), u * factor)
    assert torch.allclose(tree.dot(a, b), u @ v)
    assert torch.allclose(tree.norm(a), u.norm())
    assert torch.allclose(tree.square_distance(a, b), (u - v).square().sum())


def test_operands_meet_by_name_not_by_order():
    a = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0, 3.0])}
    reversed_ = {"y": torch.tensor([20.0, 30.0]), "x": torch.tensor([10.0])}
    assert tree.add(a, reversed_)["y"].tolist() == [22.0, 33.0]
    assert float(tree.dot(a, reversed_)) == 10 + 40 + 90


def test_a_missing_name_is_an_error():
    with pytest.raises(KeyError):
        tree.add({"x": torch.ones(1)}, {"y": torch.ones(1)})


@given(trees(), st.integers(1, 4))
def test_slices_of_a_stack_are_what_was_stacked(values, times):
    many = [
        tree.map(lambda value, i=i: value + i if value.dtype != torch.bool else value, values) for i in range(times)
    ]
    stacked = tree.stack(many)
    for i in range(times):
        assert identical(tree.take(stacked, i), many[i])
    halves = [tree.take(stacked, slice(0, 1)), tree.take(stacked, slice(1, None))]
    assert identical(tree.concatenate(halves), stacked)


def test_repeating_copies_nothing():
    values = {"w": torch.randn(3, 2)}
    repeated = tree.repeat(values, 5)
    assert repeated["w"].shape == (5, 3, 2)
    assert repeated["w"].data_ptr() == values["w"].data_ptr()
