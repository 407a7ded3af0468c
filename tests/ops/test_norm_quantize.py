"""Norm, modulation and quantization in one: what torch's own layers and the other op give."""

import pytest
import torch
import torch.nn.functional as F

from viditq.ops import norm_quantize, quantize_rows
from viditq.ops.norm_quantize import normalize_rows


def test_the_norms_are_torchs():
    x = torch.randn(7, 36, dtype=torch.float64) * 3 + 1
    weight, bias = torch.randn(36), torch.randn(36)
    layer = F.layer_norm(x, (36,), weight.double(), bias.double(), 1e-5)
    rms = F.rms_norm(x, (36,), weight.double(), 1e-5)
    torch.testing.assert_close(normalize_rows(x, "layer", 1e-5, weight, bias, None, None), layer)
    torch.testing.assert_close(normalize_rows(x, "rms", 1e-5, weight, None, None, None), rms)


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulation_is_by_batch(batch, dtype):
    x, gain = torch.randn(6, 36).to(dtype), torch.randn(batch, 36).to(dtype)
    shift, smooth = torch.randn(batch, 36).to(dtype), torch.rand(36) + 0.5
    normed = F.layer_norm(x.float(), (36,), eps=1e-6).view(batch, 6 // batch, 36)
    expected = (normed * (1 + gain.float()[:, None]) + shift.float()[:, None]).view(6, 36)
    codes, scale = norm_quantize(x, gain=gain, shift=shift, smooth=smooth, hadamard=4)
    wanted, wanted_scale = quantize_rows(expected, smooth, 4)
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-5, atol=0)
    assert (codes.int() - wanted.int()).abs().max() <= 1
    assert (codes != wanted).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_static_scale(kind):
    x, gain, smooth = torch.randn(6, 36), torch.randn(2, 36), torch.rand(36) + 0.5
    scale = torch.tensor(0.02)
    codes, returned = norm_quantize(x, kind, gain=gain, smooth=smooth, hadamard=4, scale=scale)
    normed = normalize_rows(x, kind, 1e-6, None, None, gain, None)
    assert torch.equal(codes, quantize_rows(normed, smooth, 4, 8, scale)[0])
    assert returned is scale


def test_a_center():
    x, smooth, center = torch.randn(6, 36), torch.rand(36) + 0.5, torch.randn(36)
    codes, scale = norm_quantize(x, smooth=smooth, hadamard=4, center=center)
    normed = normalize_rows(x, "layer", 1e-6, None, None, None, None)
    wanted, wanted_scale = quantize_rows(normed - center, smooth, 4)
    assert torch.equal(codes, wanted)
    assert torch.equal(scale, wanted_scale)


def test_one_row_or_none():
    for rows in (0, 1):
        codes, scale = norm_quantize(torch.randn(rows, 8), "rms", gain=torch.ones(1, 8))
        assert (codes.shape, scale.shape) == ((rows, 8), (rows,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "batch"}, "layer, rms, not 'batch'"),
        ({"weight": torch.ones(7)}, r"weight must have shape \(8,\), not \(7,\)"),
        ({"gain": torch.ones(8)}, r"gain must have shape \(B, 8\), not \(8,\)"),
        ({"shift": torch.ones(4, 8)}, "the 4 rows of shift do not divide the 6 of x"),
        ({"bits": 9}, "2 … 8, not 9"),
        ({"smooth": torch.ones(7)}, r"smooth must have shape \(8,\), not \(7,\)"),
        ({"center": torch.ones(7)}, r"center must have shape \(8,\), not \(7,\)"),
        ({"scale": torch.ones(1)}, r"one torch.float32, \(\), not torch.float32 \(1,\)"),
    ],
)
def test_wrong_arguments(wrong, words):
    with pytest.raises(ValueError, match=words):
        norm_quantize(torch.randn(6, 8), **wrong)


@pytest.mark.parametrize("rows", [0, 6])
def test_registration(rows):
    x, one = torch.randn(rows, 8).bfloat16(), torch.ones(8)
    arguments = (x, "layer", 1e-6, one, one, torch.ones(2, 8), torch.ones(2, 8), one, 4, 8)
    bare = (x, "rms", 1e-6, None, None, None, None, None, 0, 6)
    for scale in (None, torch.tensor(0.02)):
        for given in (arguments, bare):
            torch.library.opcheck(torch.ops.viditq.norm_quantize.default, (*given, scale))
