"""The rotation's block divides every width there is; its signs are the same everywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.balancing import random_signs, rotation_block


@given(features=st.integers(1, 20000), exponent=st.integers(0, 12))
def test_the_largest_power_of_two_that_divides_and_is_allowed(features, exponent):
    allowed = 2**exponent
    block = rotation_block(features, allowed)
    fitting = [2**e for e in range(2, 13) if 2**e <= allowed and features % 2**e == 0]
    assert block == max(fitting, default=0)


@given(features=st.integers(1, 20000))
def test_no_rotation_asked(features):
    assert rotation_block(features, 0) == 0


# PixArt-Σ, CogVideoX, Wan, FLUX and HunyuanVideo, and their feed-forwards.
@pytest.mark.parametrize("width", [1152, 1536, 1920, 3072, 4608, 5120, 8960, 12288, 13824])
def test_real_widths_take_the_whole_block(width):
    assert rotation_block(width, 128) == 128


def test_signs():
    signs = random_signs(1000, 7)
    assert signs.dtype == torch.float32
    assert torch.equal(signs.abs(), torch.ones(1000))
    assert abs(signs.mean()) < 0.1
    torch.manual_seed(123)  # the global generator has no part in it
    assert torch.equal(random_signs(1000, 7), signs)
    assert not torch.equal(random_signs(1000, 8), signs)
