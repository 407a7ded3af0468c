"""Integer matrix products are exact; the scales act outside the sum."""

import pytest
import torch

from viditq.ops import int4_linear, int8_linear, pack_int4
from viditq.ops.int8_linear import reference
from viditq.ops.int8_linear.reference import integer_matmul


def random_codes(rows: int, features: int, bits: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bound = 2 ** (bits - 1)
    return torch.randint(-bound, bound, (rows, features), generator=generator, dtype=torch.int8)


# M: none, one, odd. N: one, odd. K: one, odd, both sides of a multiple of 128 and of the 1024 that
# fp32 carries exactly, and one that needs three parts.
SHAPES = pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (0, 3, 8),
        (1, 1, 1),
        (1, 17, 36),
        (17, 5, 127),
        (17, 16, 129),
        (3, 2, 1023),
        (3, 2, 1024),
        (3, 2, 1025),
        (2, 3, 2049),
    ],
)


@SHAPES
def test_the_integer_sum_is_exact(m, n, k):
    x, w = random_codes(m, k, seed=1), random_codes(n, k, seed=2)
    exact = x.long() @ w.long().T
    assert torch.equal(integer_matmul(x, w).long(), exact)


@pytest.mark.parametrize("k", [1024, 1025, 1040, 4096])
@pytest.mark.parametrize(("a", "b"), [(-128, -128), (127, -128), (127, 127)])
def test_the_largest_sums_are_exact(a, b, k):
    """The worst case of the bound that the reference derives its parts from, one less and more."""
    x, w = torch.full((1, k), a, dtype=torch.int8), torch.full((1, k), b, dtype=torch.int8)
    w[0, 0] -= 1 if b > 0 else -1  # odd sums: not those that any float type holds by luck
    exact = (x.long() @ w.long().T).float()  # one rounding, where the sum itself exceeds 2²⁴
    assert torch.equal(integer_matmul(x, w), exact)


@SHAPES
def test_scales_and_bias_act_on_the_sum(m, n, k):
    x, w = random_codes(m, k, seed=1), random_codes(n, k, seed=2)
    x_scale, scale, bias = torch.rand(m), torch.rand(n), torch.randn(n)
    exact = (x.long() @ w.long().T).double()
    expected = exact * x_scale[:, None].double() * scale.double() + bias.double()
    # Two products and a sum in fp32: three roundings of the largest term.
    bound = 4 * torch.finfo(torch.float32).eps * (expected.abs() + bias.abs())
    assert torch.all((int8_linear(x, x_scale, w, scale, bias) - expected).abs() <= bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("static", [False, True])
def test_the_result_is_rounded_to_the_output_type_once(dtype, static):
    x, w = random_codes(5, 64, seed=1), random_codes(3, 64, seed=2)
    x_scale = torch.tensor(0.01) if static else torch.rand(5) / 100
    bias = torch.randn(3).to(dtype)
    wide = int8_linear(x, x_scale, w, torch.full((3,), 0.02), bias.float())
    result = int8_linear(x, x_scale, w, torch.full((3,), 0.02), bias, dtype)
    assert result.dtype == dtype
    assert torch.equal(result, wide.to(dtype))


def test_no_bias_is_a_bias_of_zero():
    x, w, x_scale, scale = random_codes(5, 9), random_codes(3, 9), torch.rand(5), torch.rand(3)
    assert torch.equal(
        int8_linear(x, x_scale, w, scale), int8_linear(x, x_scale, w, scale, torch.zeros(3))
    )


@SHAPES
def test_int4_is_int8_on_unpacked_codes(m, n, k):
    x, w = random_codes(m, k), random_codes(n, k, bits=4)
    x_scale, scale, bias = torch.rand(m), torch.rand(n), torch.randn(n)
    packed = int4_linear(x, x_scale, pack_int4(w), scale, bias)
    assert torch.equal(packed, int8_linear(x, x_scale, w, scale, bias))


def test_a_token_that_is_not_finite_stays_so_and_alone():
    x, w = random_codes(3, 8), random_codes(2, 8)
    x[1] = 0  # as quantize_rows leaves such a row
    y = int8_linear(x, torch.tensor([1.0, torch.inf, 1.0]), w, torch.ones(2))
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_gate_and_residual_follow_the_layer(batch):
    """By batch and, where the batch is as long as the tokens, by token; rounded once."""
    x, w, x_scale, scale = random_codes(6, 9), random_codes(4, 9), torch.rand(6), torch.rand(4)
    bias, gate, residual = torch.randn(4), torch.randn(batch, 4).bfloat16(), torch.randn(6, 4)
    y = int8_linear(x, x_scale, w, scale, bias)
    gates = gate.float().view(batch, 1, 4).expand(batch, 6 // batch, 4).reshape(6, 4)
    fused = int8_linear(x, x_scale, w, scale, bias, gate=gate, residual=residual)
    assert torch.equal(fused, y * gates + residual)
    half = {"gate": gate, "residual": residual, "dtype": torch.bfloat16}
    assert torch.equal(int8_linear(x, x_scale, w, scale, bias, **half), fused.bfloat16())
    assert torch.equal(int8_linear(x, x_scale, w, scale, bias, residual=residual), y + residual)
    packed = pack_int4(w.clamp(-8, 7))
    four = int4_linear(x, x_scale, packed, scale, bias, gate=gate, residual=residual)
    eight = int8_linear(x, x_scale, w.clamp(-8, 7), scale, bias, gate=gate, residual=residual)
    assert torch.equal(four, eight)


def test_shapes_that_do_not_fit():
    x, one = random_codes(2, 9), torch.ones(2)
    with pytest.raises(ValueError, match=r"\(2, 9\) and \(3, 8\)"):
        int8_linear(x, one, random_codes(3, 8), torch.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 9\) and \(3, 4\)"):
        int4_linear(x, one, torch.zeros(3, 4, dtype=torch.uint8), torch.ones(3))
    codes = random_codes(3, 9)
    with pytest.raises(ValueError, match=r"gate must have shape \(B, 3\), not \(2, 4\)"):
        int8_linear(x, one, codes, torch.ones(3), gate=torch.ones(2, 4))
    with pytest.raises(ValueError, match="the 3 rows of gate do not divide the 2 of x"):
        int8_linear(x, one, codes, torch.ones(3), gate=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 3\), not \(3, 2\)"):
        int8_linear(x, one, codes, torch.ones(3), residual=torch.ones(3, 2))
    with pytest.raises(ValueError, match="do not fit"):
        int8_linear(x[None], one, random_codes(3, 9), torch.ones(3))


@pytest.mark.parametrize("m", [0, 1, 17])
@pytest.mark.parametrize("bias", [False, True])
def test_registration(m, bias):
    """Schema, shape function and dispatch of both ops, as torch itself checks them."""
    x, scale = random_codes(m, 9), torch.rand(3)
    rest = (scale, torch.randn(3) if bias else None, torch.randn(1, 3) if bias else None)
    rest = (*rest, torch.randn(m, 3) if bias else None, torch.bfloat16)
    torch.library.opcheck(
        torch.ops.viditq.int8_linear.default, (x, torch.rand(m), random_codes(3, 9), *rest)
    )
    packed = pack_int4(random_codes(3, 9, bits=4))
    torch.library.opcheck(
        torch.ops.viditq.int4_linear.default, (x, torch.tensor(0.5), packed, *rest)
    )


@pytest.mark.parametrize("bytes_", [True, False])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 36, 5), (17, 7, 3), (2, 1, 3), (1, 2, 3), (0, 8, 4), (33, 1025, 65)]
)
def test_sums_are_exact_on_any_processor(monkeypatch, bytes_, m, k, n):
    if bytes_ and not reference._multiplies_bytes():
        pytest.skip("this processor does not multiply bytes")
    monkeypatch.setattr(reference, "_multiplies_bytes", lambda: bytes_)
    x, weight = (torch.randint(-128, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
    x[:1], weight[:1] = -128, -128  # the largest sum there is
    expected = (x.long() @ weight.long().T).float()
    assert torch.equal(integer_matmul(x, weight), expected)
