"""Grids hold what they were made for, and the searched one is never the worse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.formats import FORMATS, FP8, INT4, INT8
from viditq.quantizers import Grid, fake_quantize, minmax_grid, search_grid

KINDS = pytest.mark.parametrize(
    "kind", [{}, {"group": 8}, {"zero_point": True}, {"group": 8, "zero_point": True}], ids=str
)


@given(
    # 21 columns end in a group that is not full.
    k=st.sampled_from([1, 8, 21]),
    group=st.sampled_from([0, 8]),
    zero_point=st.booleans(),
    fmt=st.sampled_from(list(FORMATS.values())),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 2**16),
)
def test_every_value_lies_within_half_a_step(k, group, zero_point, fmt, shift, seed):
    x = torch.randn(5, k, generator=torch.Generator().manual_seed(seed)) + shift
    grid = minmax_grid(x, fmt, group=group, zero_point=zero_point)
    error = (grid.values(grid.codes(x, fmt)) - x).abs()
    # A zero point is rounded, so that one end may lie another half step outside.
    bound = (1.0 if zero_point else 0.5) * grid.steps(k)
    assert torch.all(error <= bound * (1 + 1e-4) + 1e-6)


@KINDS
def test_zero_is_on_the_grid(kind):
    x = torch.rand(4, 16) + 1.0
    x[:, ::5] = 0.0
    made = fake_quantize(x, INT4, **kind)
    assert not made[:, ::5].any()


def test_a_zero_point_halves_the_step_of_what_is_positive():
    x = torch.rand(64, 32)
    assert (
        minmax_grid(x, INT8, zero_point=True).scale.max() < 0.51 * minmax_grid(x, INT8).scale.max()
    )


def test_groups_keep_an_outlier_to_themselves():
    """What Q-DiT is about: the other groups keep the step that they had."""
    x = torch.randn(3, 32)
    loud = x.clone()
    loud[:, 3] = 1000.0
    before, after = minmax_grid(x, INT8, group=8), minmax_grid(loud, INT8, group=8)
    assert torch.equal(after.scale[:, 1:], before.scale[:, 1:])
    assert torch.all(minmax_grid(loud, INT8).scale > 100 * minmax_grid(x, INT8).scale)


@KINDS
def test_a_search_never_ends_worse_than_it_began(kind):
    x, importance = torch.randn(6, 24) ** 3, torch.rand(24)

    def error(grid):
        return ((x - grid.values(grid.codes(x, INT4))).square() * importance).sum()

    assert error(search_grid(x, INT4, importance, **kind)) < error(minmax_grid(x, INT4, **kind))


def test_split_gives_each_layer_its_rows():
    grid = minmax_grid(torch.randn(5, 16), INT4, group=8, zero_point=True)
    first, second = grid.split([2, 3])
    assert torch.equal(torch.cat([first.scale, second.scale]), grid.scale)
    assert first.offset is not None and second.offset is not None and grid.offset is not None
    assert torch.equal(torch.cat([first.offset, second.offset]), grid.offset)


def test_fp8_keeps_three_bits_behind_the_leading_one():
    x = torch.randn(4, 64)
    grid = minmax_grid(x, FP8)
    codes = grid.codes(x, FP8)
    assert codes.dtype == torch.float8_e4m3fn
    assert codes.float().abs().amax(1).tolist() == [448.0] * 4
    large = x.abs() > 0.05 * x.abs().amax(1, keepdim=True)
    relative = ((grid.values(codes) - x) / x).abs()
    assert relative[large].max() <= 2**-4


def test_of_one_value_for_all():
    grid = Grid(torch.tensor([0.5]), torch.tensor([1.0]))
    assert grid.values(grid.codes(torch.tensor([[1.0, 1.6]]), INT8)).tolist() == [[1.0, 1.5]]
