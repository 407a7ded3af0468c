"""Per-token quantization: half a scale of error at most, row by row, for any row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.ops import quantize_rows
from viditq.ops.quantize_rows import balance_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return codes.double() * scale.double()[:, None]


@given(
    # One row and an odd number; K odd, even, and a multiple of the rotation's block.
    m=st.sampled_from([1, 2, 17]),
    k=st.sampled_from([1, 7, 36, 128]),
    bits=st.integers(2, 8),
    hadamard=st.sampled_from([0, 4]),
    smooth=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    # Within what fp16 holds; scales far below are no normal fp32 number, see the test of tiny rows.
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**16),
)
def test_within_half_a_scale(m, k, bits, hadamard, smooth, dtype, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k, generator=generator) * 2.0**exponent).to(dtype)
    vector = torch.rand(k, generator=generator) + 0.5 if smooth else None
    hadamard = hadamard if k % 4 == 0 else 0
    codes, scale = quantize_rows(x, vector, hadamard, bits)
    assert (codes.dtype, codes.shape) == (torch.int8, (m, k))
    assert (scale.dtype, scale.shape) == (torch.float32, (m,))
    balanced = balance_rows(x, vector, hadamard).double()
    # The scale, the quotient and the product are fp32: a few ulp of the largest value on top.
    bound = scale.double() / 2 + 4 * torch.finfo(torch.float32).eps * balanced.abs().amax(1)
    assert torch.all((dequantize(codes, scale) - balanced).abs() <= bound[:, None])
    assert codes.abs().max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_largest_magnitude_gets_the_largest_code(bits):
    x = torch.randn(17, 33)
    codes, scale = quantize_rows(x, bits=bits)
    qmax = 2 ** (bits - 1) - 1
    assert torch.all(codes.abs().amax(1) == qmax)
    torch.testing.assert_close(scale * qmax, x.abs().amax(1))


def test_ties_go_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    codes, scale = quantize_rows(x)
    assert scale.tolist() == [1.0]
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    x = torch.randn(17, 36).to(dtype) * torch.logspace(-3, 2, 17)[:, None].to(dtype)
    codes, scale = quantize_rows(x)
    for i in range(17):
        alone, alone_scale = quantize_rows(x[i : i + 1])
        assert torch.equal(alone[0], codes[i])
        assert torch.equal(alone_scale[0], scale[i])


def test_powers_of_two_change_the_scale_alone():
    x = torch.randn(5, 36)
    codes, scale = quantize_rows(x)
    for exponent in (-20, 20):
        other, other_scale = quantize_rows(x * 2.0**exponent)
        assert torch.equal(other, codes)
        assert torch.equal(other_scale, scale * 2.0**exponent)


def test_balancing_is_part_of_the_op():
    """Smooth divides first, the rotation follows: the other order gives other codes."""
    x, smooth = torch.randn(5, 32), torch.rand(32) + 0.1
    codes, scale = quantize_rows(x, smooth, 32)
    expected, expected_scale = quantize_rows(balance_rows(x, smooth, 32))
    assert torch.equal(codes, expected)
    assert torch.equal(scale, expected_scale)
    reversed_order, _ = quantize_rows(balance_rows(x, None, 32) / smooth)
    assert not torch.equal(codes, reversed_order)


def test_a_center_is_taken_off_first():
    x, smooth, center = torch.randn(5, 32) + 3, torch.rand(32) + 0.1, torch.randn(32)
    codes, scale = quantize_rows(x, smooth, 32, center=center)
    expected, expected_scale = quantize_rows(x - center, smooth, 32)
    assert torch.equal(codes, expected)
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("hadamard", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_is_exact(dtype, hadamard):
    x = torch.randn(3, 8).to(dtype)
    x[1] = 0
    codes, scale = quantize_rows(x, hadamard=hadamard)
    assert not codes[1].any()
    assert scale[1] == 0
    assert torch.all(scale[[0, 2]] > 0)


@pytest.mark.parametrize("hadamard", [0, 4])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_is_not_finite_says_so_and_leaves_the_others_alone(bad, hadamard):
    x = torch.randn(3, 8)
    clean_codes, clean_scale = quantize_rows(x, hadamard=hadamard)
    x[1, 5] = bad
    codes, scale = quantize_rows(x, hadamard=hadamard)
    assert not torch.isfinite(scale[1])
    assert not codes[1].any()
    assert torch.isnan(codes[1] * scale[1]).all()
    assert torch.equal(codes[[0, 2]], clean_codes[[0, 2]])
    assert torch.equal(scale[[0, 2]], clean_scale[[0, 2]])


def test_a_tiny_row_keeps_its_sign_and_order_of_magnitude():
    """The smallest numbers of bf16 training; below, where a scale is subnormal, codes shrink."""
    x = torch.tensor([[1e-30, -5e-31, 0.0]])
    codes, scale = quantize_rows(x)
    torch.testing.assert_close(
        dequantize(codes, scale), x.double(), rtol=0, atol=scale.item() * 0.51
    )
    assert torch.isfinite(quantize_rows(torch.full((1, 4), 1e-44))[1]).all()


# M: none, one, odd; K: two blocks of the rotation.
@pytest.mark.parametrize("m", [0, 1, 17])
@pytest.mark.parametrize("hadamard", [0, 4])
@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_static_scale_is_within_half_of_it_inside_its_range(m, bits, hadamard, dtype):
    x, smooth = torch.randn(m, 8).clamp(-2, 2).to(dtype), torch.rand(8) + 0.5
    scale = torch.tensor(8.0 / (2 ** (bits - 1) - 1))
    codes, returned = quantize_rows(x, smooth, hadamard, bits, scale)
    assert returned is scale
    assert (codes.dtype, codes.shape) == (torch.int8, (m, 8))
    error = codes.double() * scale.double() - balance_rows(x, smooth, hadamard).double()
    assert torch.all(error.abs() <= scale.double() / 2 * (1 + 1e-5))


@pytest.mark.parametrize("bits", [6, 8])
def test_what_exceeds_a_static_range_saturates_on_both_sides_alike(bits):
    qmax = 2 ** (bits - 1) - 1
    x = torch.tensor([[1e6, -1e6, torch.inf, -torch.inf, torch.nan]])
    codes, _ = quantize_rows(x, bits=bits, scale=torch.tensor(0.1))
    assert codes.tolist() == [[qmax, -qmax, qmax, -qmax, 0]]


def test_a_static_scale_of_zero_makes_no_nan():
    """An input that was zero all along calibration."""
    codes, _ = quantize_rows(torch.zeros(2, 3), scale=torch.tensor(0.0))
    assert codes.tolist() == [[0] * 3] * 2


def test_static_ties_go_to_even_and_quotients_are_rounded_once():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert quantize_rows(x, scale=torch.tensor(1.0))[0].tolist() == [[0, 2, 2, 0, -2, -2]]
    scale = torch.tensor(1 / 3)
    quotient = x * scale
    codes, _ = quantize_rows(quotient, scale=scale)
    assert torch.equal(codes, (quotient / scale).round().to(torch.int8))


@pytest.mark.parametrize("hadamard", [0, 4])
def test_no_rows(hadamard):
    codes, scale = quantize_rows(torch.empty(0, 8), torch.ones(8), hadamard)
    assert (codes.shape, codes.dtype) == ((0, 8), torch.int8)
    assert (scale.shape, scale.dtype) == ((0,), torch.float32)


def test_bad_arguments():
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="floating-point matrix"):
        quantize_rows(x.to(torch.int8))
    with pytest.raises(ValueError, match="floating-point matrix"):
        quantize_rows(x[None])
    with pytest.raises(ValueError, match=r"smooth must have shape \(8,\), not \(2,\)"):
        quantize_rows(x, torch.ones(2))
    with pytest.raises(ValueError, match=r"center must have shape \(8,\), not \(2,\)"):
        quantize_rows(x, center=torch.ones(2))
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits"):
            quantize_rows(x, bits=bits)
    for scale in (torch.ones(2), torch.ones(1), torch.tensor(1.0).double()):
        with pytest.raises(ValueError, match=r"one torch.float32, \(\), not torch.float"):
            quantize_rows(x, scale=scale)


@pytest.mark.parametrize("hadamard", [0, 4])
@pytest.mark.parametrize("smooth", [False, True])
# As a model passes it, a transposed view, a slice of a wider tensor, nothing at all.
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "slice", "empty"])
@pytest.mark.parametrize("static", [False, True])
def test_registration(layout, smooth, hadamard, static):
    x = {
        "contiguous": torch.randn(17, 8),
        "transposed": torch.randn(8, 17).T,
        "slice": torch.randn(17, 20)[:, :8],
        "empty": torch.empty(0, 8),
    }[layout]
    vector = torch.rand(8) + 0.5 if smooth else None
    scale = torch.tensor(0.02) if static else None
    for center in (None, torch.randn(8)):
        rest = (vector, hadamard, 8, scale, center)
        torch.library.opcheck(torch.ops.viditq.quantize_rows.default, (x, *rest))
        contiguous = quantize_rows(x.contiguous(), *rest)
        for mine, other in zip(quantize_rows(x, *rest), contiguous, strict=True):
            assert torch.equal(mine, other)
