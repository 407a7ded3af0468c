"""Static per-tensor quantization: half a scale inside the calibrated range, saturation outside."""

import pytest
import torch

from viditq.ops import quantize_tensor


# M: none, one, odd; K odd.
@pytest.mark.parametrize("m", [0, 1, 17])
@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_within_half_a_scale_inside_the_range(m, bits, dtype):
    x = torch.randn(m, 33).clamp(-2, 2).to(dtype)
    qmax = 2 ** (bits - 1) - 1
    scale = torch.tensor(2.0 / qmax)
    codes = quantize_tensor(x, scale, bits)
    assert codes.dtype == torch.int8
    error = (codes.double() * scale.double() - x.double()).abs()
    assert torch.all(error <= scale.double() / 2 * (1 + 1e-5))


@pytest.mark.parametrize("bits", [6, 8])
def test_what_exceeds_the_range_saturates_on_both_sides_alike(bits):
    qmax = 2 ** (bits - 1) - 1
    x = torch.tensor([[1e6, -1e6, torch.inf, -torch.inf, torch.nan]])
    codes = quantize_tensor(x, torch.tensor(0.1), bits)
    assert codes.tolist() == [[qmax, -qmax, qmax, -qmax, 0]]


def test_a_scale_of_zero_makes_no_nan():
    """An input that was zero all along calibration."""
    assert quantize_tensor(torch.zeros(2, 3), torch.tensor(0.0)).tolist() == [[0] * 3] * 2


def test_more_than_one_scale():
    with pytest.raises(ValueError, match=r"\(2,\)"):
        quantize_tensor(torch.randn(2, 3), torch.ones(2))


@pytest.mark.parametrize("transposed", [False, True])
def test_registration(transposed):
    x = torch.randn(5, 7).T if transposed else torch.randn(7, 5)
    torch.library.opcheck(torch.ops.viditq.quantize_tensor.default, (x, torch.tensor(0.1), 8))
