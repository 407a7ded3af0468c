"""Packing is lossless and dense, for rows of any length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.ops import pack_int4, pack_int6, unpack_int4, unpack_int6

OPS = {4: (pack_int4, unpack_int4), 6: (pack_int6, unpack_int6)}
BITS = pytest.mark.parametrize("bits", OPS)


@st.composite
def codes(draw, bits):
    rows, features = draw(st.integers(0, 4)), draw(st.integers(1, 19))
    code = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = draw(st.lists(code, min_size=rows * features, max_size=rows * features))
    return torch.tensor(values, dtype=torch.int8).reshape(rows, features)


@given(st.data())
@BITS
def test_round_trip(bits, data):
    pack, unpack = OPS[bits]
    original = data.draw(codes(bits))
    packed = pack(original)
    assert packed.dtype == torch.uint8
    restored = unpack(packed, original.shape[1])
    assert restored.dtype == torch.int8
    assert torch.equal(restored, original)


@BITS
def test_every_code_at_every_place_of_a_group(bits):
    """Nothing leaks from one code into its neighbours: all others stay 0."""
    pack, unpack = OPS[bits]
    places = 12  # a multiple of both groups
    for code in range(-(2 ** (bits - 1)), 2 ** (bits - 1)):
        original = torch.eye(places, dtype=torch.int8) * code
        assert torch.equal(unpack(pack(original), places), original)


def test_int4_puts_the_even_column_into_the_low_nibble():
    assert pack_int4(torch.tensor([[1, -1, 7]], dtype=torch.int8)).tolist() == [[0xF1, 0x07]]


def test_int6_fills_three_bytes_lowest_bits_first():
    packed = pack_int6(torch.tensor([[1, 2, 3, -1, 5]], dtype=torch.int8))
    word = 1 | 2 << 6 | 3 << 12 | 0x3F << 18
    assert packed.tolist() == [[word & 0xFF, word >> 8 & 0xFF, word >> 16, 5, 0, 0]]
