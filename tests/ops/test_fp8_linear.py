"""The fp8 product and its quantization are their formulas; on CUDA torch's product is near them."""

import pytest
import torch

from viditq.ops import fp8_linear, int8_linear, quantize_rows_fp8, use_backend
from viditq.ops.fp8_linear import cuda
from viditq.ops.int8_linear.reference import finish

FP8 = torch.float8_e4m3fn


def arguments(m, n, k, dtype=torch.float32, device="cpu"):
    """What the op takes, random: tensors, then the gate for two batches or one, and a residual."""
    x, x_scale = quantize_rows_fp8(torch.randn(m, k))
    weight, scale = quantize_rows_fp8(torch.randn(n, k) / max(1, k) ** 0.5)
    bias, residual = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
    gate = torch.randn(2 - m % 2, n).to(dtype)
    tensors = (x, x_scale, weight, scale, bias, gate, residual)
    return tuple(tensor.to(device) for tensor in tensors)


def exactly(x, x_scale, weight, scale, bias):
    """In fp64, from the codes."""
    y = x.float().double() @ weight.float().double().T
    return y * x_scale.double()[:, None] * scale.double() + bias.double()


# M: none, one, odd, even. N and K: one, odd, multiples of 16.
SHAPES = pytest.mark.parametrize(
    ("m", "n", "k"), [(0, 3, 8), (1, 1, 1), (17, 5, 127), (6, 48, 64), (2, 16, 2048)]
)


@SHAPES
def test_is_its_formula(m, n, k):
    *given, gate, residual = arguments(m, n, k)
    exact = exactly(*given)
    torch.testing.assert_close(fp8_linear(*given).double(), exact, rtol=1e-5, atol=1e-5)
    gates = gate.double().repeat_interleave(m // len(gate), 0)
    fused = fp8_linear(*given, gate=gate, residual=residual).double()
    torch.testing.assert_close(fused, exact * gates + residual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(dtype):
    *given, gate, residual = arguments(6, 5, 9)
    follows = {"gate": gate, "residual": residual}
    wide = fp8_linear(*given, **follows)
    assert torch.equal(fp8_linear(*given, dtype, **follows), wide.to(dtype))


def test_on_codes_that_are_integers_it_is_the_integer_product():
    x, weight = (torch.randint(-16, 17, (rows, 40), dtype=torch.int8) for rows in (5, 3))
    scales = torch.rand(5), torch.rand(3), torch.randn(3)
    y = fp8_linear(x.float().to(FP8), scales[0], weight.float().to(FP8), *scales[1:])
    assert torch.equal(y, int8_linear(x, scales[0], weight, *scales[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exponent", [-20, 0, 20])
def test_quantization_is_within_half_a_unit_of_the_last_place(dtype, exponent):
    """Four significant bits; below 2⁻⁶ of a scale, a fixed step of 2⁻⁹."""
    x = (torch.randn(17, 33) * 2.0**exponent).to(dtype)
    codes, scale = quantize_rows_fp8(x)
    assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (
        FP8,
        (17, 33),
        torch.float32,
        (17,),
    )
    wide = codes.float().double()
    assert torch.all(wide.abs().amax(1) == 448)
    error = (wide * scale.double()[:, None] - x.double()).abs()
    bound = torch.maximum(x.double().abs() / 16, scale.double()[:, None] * 2**-10)
    assert torch.all(error <= bound * (1 + 1e-6))


def test_rows_of_no_ordinary_numbers():
    x = torch.randn(6, 16)
    x[1], x[2] = 0, 1e-44
    x[3, 5], x[4, 0] = torch.inf, torch.nan
    codes, scale = quantize_rows_fp8(x)
    y = fp8_linear(codes, scale, *quantize_rows_fp8(torch.randn(4, 16)))
    assert scale[1] == 0
    assert not y[1].any()
    assert y[[3, 4]].isnan().all()
    assert y[[0, 2, 5]].isfinite().all()
    empty, none = quantize_rows_fp8(torch.empty(0, 8))
    assert (empty.shape, empty.dtype, none.shape) == ((0, 8), FP8, (0,))


def test_what_does_not_fit():
    x, x_scale, weight, scale, *_ = arguments(2, 3, 9)
    with pytest.raises(
        ValueError, match=r"float8_e4m3fn, not torch\.int8 and torch\.float8_e4m3fn"
    ):
        fp8_linear(x.to(torch.int8), x_scale, weight, scale)
    with pytest.raises(ValueError, match=r"\(2, 9\) and \(3, 8\)"):
        fp8_linear(x, x_scale, weight[:, :8], scale)
    with pytest.raises(ValueError, match=r"x_scale must have shape \(2,\), not \(\)"):
        fp8_linear(x, torch.tensor(1.0), weight, scale)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\), not \(3, 1\)"):
        fp8_linear(x, x_scale, weight, scale[:, None])
    with pytest.raises(ValueError, match=r"gate must have shape \(B, 3\), not \(2, 4\)"):
        fp8_linear(x, x_scale, weight, scale, gate=torch.ones(2, 4))


@pytest.mark.parametrize("m", [0, 1, 17])
@pytest.mark.parametrize("bare", [False, True])
def test_registration(m, bare):
    *given, gate, residual = arguments(m, 3, 9)
    follows = (None, None, None) if bare else (given.pop(), gate, residual)
    given = (*given[:4], *follows, torch.bfloat16)
    # The check of the schema compares arguments by sums that torch lacks for fp8.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.viditq.fp8_linear.default, given, test_utils=checks)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_torchs_product(gated, residual, dtype):
    """As the reference has it, after one more rounding of the product."""
    y, gate, rest = torch.randn(6, 8), torch.randn(2, 8).to(dtype), torch.randn(6, 8).to(dtype)
    follows = (gate if gated else None, rest if residual else None)
    wanted = finish(y, torch.ones(6), torch.ones(8), None, *follows, torch.float32)
    if gated or residual:
        torch.testing.assert_close(cuda._gated(y, *follows).float(), wanted)


def test_what_is_left_to_the_reference(monkeypatch):
    monkeypatch.setattr(cuda, "_has_fp8", lambda device: True)
    x, weight, dtype = torch.empty(5, 32, dtype=FP8), torch.empty(48, 32, dtype=FP8), torch.bfloat16
    assert cuda.takes(x, weight, dtype)
    assert not cuda.takes(x, weight, torch.float32)
    assert not cuda.takes(x, weight[:47], dtype)
    assert not cuda.takes(x[:, :24], weight[:, :24], dtype)
    assert not cuda.takes(x[:0], weight, dtype)
    monkeypatch.setattr(cuda, "_has_fp8", lambda device: False)
    assert not cuda.takes(x, weight, dtype)


@pytest.mark.gpu
class TestOnCuda:
    # The last three are the reference's: N, K, and nothing.
    @pytest.mark.parametrize(
        ("m", "n", "k"),
        [(1, 16, 16), (17, 48, 64), (4098, 3456, 1152), (6, 17, 64), (6, 48, 36), (0, 16, 16)],
    )
    def test_is_the_reference(self, m, n, k):
        """bf16 rounds the product and the result, and Hopper's fast sums have fewer bits."""
        *given, gate, residual = arguments(m, n, k, torch.bfloat16, "cuda")
        for follows in (
            {},
            {"gate": gate},
            {"residual": residual},
            {"gate": gate, "residual": residual},
        ):
            with use_backend("reference"):
                wanted = fp8_linear(*given, torch.float32, **follows)
            y = fp8_linear(*given, torch.bfloat16, **follows)
            assert y.dtype == torch.bfloat16
            assert (y.float() - wanted).norm() <= 0.01 * wanted.norm()

    def test_in_a_graph(self):
        *given, gate, residual = arguments(512, 1152, 1152, torch.bfloat16, "cuda")

        def run():
            return fp8_linear(*given, torch.bfloat16, gate=gate, residual=residual)

        expected = run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, expected)
