"""Activation and quantization in one: what torch's own functions and the other op give."""

import pytest
import torch
import torch.nn.functional as F

from viditq.ops import gelu_quantize, quantize_rows
from viditq.ops.gelu_quantize import ACTIVATIONS, activate_rows

FUNCTIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain(kind, dtype):
    x, smooth = torch.randn(5, 36).to(dtype), torch.rand(36) + 0.5
    codes, scale = gelu_quantize(x, kind, smooth=smooth, hadamard=4, bits=6)
    wanted, wanted_scale = quantize_rows(FUNCTIONS[kind](x.float()), smooth, 4, 6)
    assert torch.equal(codes, wanted)
    assert torch.equal(scale, wanted_scale)
    static = torch.tensor(0.02)
    codes, scale = gelu_quantize(x, kind, smooth=smooth, hadamard=4, bits=6, scale=static)
    wanted, _ = quantize_rows(FUNCTIONS[kind](x.float()), smooth, 4, 6, static)
    assert torch.equal(codes, wanted)
    assert scale is static
    center = torch.rand(36)
    codes, scale = gelu_quantize(x, kind, smooth=smooth, hadamard=4, bits=6, center=center)
    wanted, wanted_scale = quantize_rows(FUNCTIONS[kind](x.float()) - center, smooth, 4, 6)
    assert torch.equal(codes, wanted)
    assert torch.equal(scale, wanted_scale)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gated(kind):
    """In the order of diffusers' GEGLU: value first, gate second."""
    x = torch.randn(5, 72, dtype=torch.float64)
    expected = x[:, :36] * FUNCTIONS[kind](x[:, 36:])
    torch.testing.assert_close(activate_rows(x, kind, True), expected)
    codes, _ = gelu_quantize(x.float(), kind, gated=True)
    assert codes.shape == (5, 36)


@pytest.mark.parametrize("gated", [False, True])
def test_columns_on_the_left(gated):
    """They are balanced, rotated and scaled with the others, and not activated."""
    x, left, smooth = torch.randn(5, 24 * (1 + gated)), torch.randn(5, 12), torch.rand(36) + 0.5
    codes, scale = gelu_quantize(
        x.bfloat16(), gated=gated, smooth=smooth, hadamard=4, bits=6, left=left
    )
    row = torch.cat([left, activate_rows(x.bfloat16(), "gelu", gated)], 1)
    wanted, wanted_scale = quantize_rows(row, smooth, 4, 6)
    assert torch.equal(codes, wanted)
    assert torch.equal(scale, wanted_scale)


@pytest.mark.parametrize(
    ("x", "wrong", "words"),
    [
        (torch.ones(2, 8), {"kind": "relu"}, "gelu, gelu_tanh, silu, not 'relu'"),
        (torch.ones(2, 7), {"gated": True}, "even number of columns, not 7"),
        (torch.ones(2, 8), {"gated": True, "smooth": torch.ones(8)}, r"shape \(4,\), not \(8,\)"),
        (torch.ones(2, 8).int(), {}, "floating-point matrix, not torch.int32"),
        (torch.ones(2, 8), {"bits": 1}, "2 … 8, not 1"),
        (torch.ones(2, 8), {"left": torch.ones(3, 8)}, r"with 2 rows, not torch.float32 \(3, 8\)"),
        (torch.ones(2, 8), {"left": torch.ones(2, 8).int()}, "floating-point matrix with 2 rows"),
        (
            torch.ones(2, 8),
            {"left": torch.ones(2, 4), "smooth": torch.ones(8)},
            r"shape \(12,\), not \(8,\)",
        ),
        (torch.ones(2, 8), {"center": torch.ones(7)}, r"shape \(8,\), not \(7,\)"),
        (torch.ones(2, 8), {"scale": torch.ones(2)}, r"one torch.float32, \(\), not"),
    ],
)
def test_wrong_arguments(x, wrong, words):
    with pytest.raises(ValueError, match=words):
        gelu_quantize(x, **wrong)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [0, 3])
def test_registration(rows, gated):
    x = torch.randn(rows, 16).bfloat16()
    arguments = (x, "gelu_tanh", gated, torch.ones(8 if gated else 16), 4, 8)
    left = torch.randn(rows, 4)
    for scale in (None, torch.tensor(0.02)):
        given = (*arguments, None, scale)
        torch.library.opcheck(torch.ops.viditq.gelu_quantize.default, given)
        given = (x, "gelu_tanh", gated, None, 4, 8, left, scale)
        torch.library.opcheck(torch.ops.viditq.gelu_quantize.default, given)
