"""Codes of a format are stored in the bytes the format promises, and come back."""

import pytest
import torch

from viditq.formats import FORMATS
from viditq.quantizers import pack, unpack


# Odd, incomplete groups of two and of four, and a real width.
@pytest.mark.parametrize("features", [1, 2, 3, 5, 36, 1152])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_round_trip_in_the_promised_bytes(fmt, features):
    codes = torch.randint(fmt.qmin, fmt.qmax + 1, (3, features), dtype=torch.int8)
    stored = pack(codes, fmt)
    assert stored.element_size() == 1
    assert stored.shape == (3, fmt.row_bytes(features))
    assert torch.equal(unpack(stored, fmt, features), codes)
