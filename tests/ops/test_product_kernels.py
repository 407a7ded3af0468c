"""The integer products' kernels against their definition: interpreted here, on CUDA where there is.

The sums are exact, so what may differ is the fp32 epilogue (a product and a sum fused into one
rounding) and the rounding to a half type, which Triton's interpreter does by cutting off.
"""

import pytest
import torch

from viditq.ops import int4_linear, int8_linear, pack_int4, use_backend
from viditq.ops.int8_linear import reference

pytest.importorskip("triton")

EPILOGUES = ["plain", "bias", "gate", "everything", "one scale"]


def arguments(m, n, k, epilogue="everything", dtype=torch.float32, device="cpu", bits=8):
    """What the op takes, random."""
    generator = torch.Generator().manual_seed(m + n + k)

    def codes(rows, bits):
        bound = 2 ** (bits - 1)
        size = (rows, k)
        return torch.randint(-bound, bound, size, generator=generator, dtype=torch.int8)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x, weight = codes(m, 8), codes(n, bits)
    x_scale = normal(m).abs() if epilogue != "one scale" else torch.tensor(0.3)
    scale = normal(n).abs() / k
    everything = epilogue in ("everything", "one scale")
    bias = normal(n).to(dtype) if everything or epilogue == "bias" else None
    batch = max(b for b in (1, 2, 3) if m % b == 0)
    gate = normal(batch, n).to(dtype) if everything or epilogue == "gate" else None
    residual = normal(m, n).to(dtype) if everything else None
    tensors = (x, x_scale, weight, scale, bias, gate, residual)
    return (*(t if t is None else t.to(device) for t in tensors), dtype)


def assert_close(y, given):
    """A few roundings of the largest term in fp32, then one to the result's type (cut off: two)."""
    dtype = given[-1]
    assert y.dtype == dtype
    exact = reference.int8_linear(*given[:-1], torch.float32).double()
    terms = [exact.abs()] + [t.abs().double() for t in (given[4], given[6]) if t is not None]
    size = max(t.amax() for t in terms if t.numel()) if exact.numel() else 0.0
    bound = 8 * torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * exact.abs()
    assert torch.all((y.double() - exact).abs() <= bound)


# M: one, odd, over a tile; N odd and no multiple of a tile; K odd, below, over and at a stage.
SHAPES = [(1, 17, 36), (17, 48, 384), (129, 80, 127), (130, 260, 272)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets without CUDA only")
class TestInterpreted:
    @pytest.mark.parametrize(("m", "n", "k"), SHAPES)
    @pytest.mark.parametrize("epilogue", EPILOGUES)
    def test_int8(self, m, n, k, epilogue):
        from viditq.ops.int8_linear.triton import int8_linear as kernel

        given = arguments(m, n, k, epilogue)
        y = kernel(*given)
        assert_close(y, given)
        assert torch.equal(kernel(*given), y)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_a_gate_that_is_a_view(self, transposed):
        """One of six vectors of a modulation, or any other stride."""
        from viditq.ops.int8_linear.triton import int8_linear as kernel

        *given, gate, residual, dtype = arguments(6, 20, 64)
        view = torch.empty(20, 3).T if transposed else torch.empty(3, 6, 20)[:, 2]
        view.copy_(gate[0] + torch.arange(3)[:, None])
        assert torch.equal(
            kernel(*given, view, residual, dtype), kernel(*given, view.clone(), residual, dtype)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_results(self, dtype):
        from viditq.ops.int8_linear.triton import int8_linear as kernel

        given = arguments(33, 48, 128, dtype=dtype)
        assert_close(kernel(*given), given)

    def test_nothing(self):
        from viditq.ops.int8_linear.triton import int8_linear as kernel

        assert kernel(*arguments(0, 16, 32, "plain")).shape == (0, 16)

    @pytest.mark.parametrize(("m", "n", "k"), [(1, 3, 1), (5, 17, 37), (17, 33, 512)])
    def test_int4_is_int8_on_unpacked_codes(self, m, n, k):
        from viditq.ops.int4_linear.triton import int4_linear as kernel

        x, x_scale, weight, *rest = arguments(m, n, k, bits=4)
        y = kernel(x, x_scale, pack_int4(weight), *rest)
        assert torch.equal(y, reference.int8_linear(x, x_scale, weight, *rest))


@pytest.mark.parametrize("processors", [1, 8, 108, 132])
@pytest.mark.parametrize("n", [1, 64, 1152, 3456, 13824])
@pytest.mark.parametrize("m", [65, 600, 8192, 32760])
def test_tiles_cover_the_result(m, n, processors):
    """Whole tiles and halves of those that are left make up all tiles, and never cost more."""
    from viditq.ops.int8_linear.tiles import HOPPER_ROWS, HOPPER_WIDTHS, share_out

    widths, whole, halves = share_out(m, n, processors)
    tiles = -(-m // HOPPER_ROWS) * -(-n // sum(widths))
    assert widths in HOPPER_WIDTHS
    assert whole + halves / 2 == tiles
    assert halves == 0 or (widths[0] == widths[1] and whole % processors == 0)


def test_what_hopper_declines():
    from viditq.ops.int8_linear import hopper

    def takes(x, weight, dtype=torch.bfloat16, residual=None):
        return hopper.takes(x, None, weight, None, None, None, residual, dtype)

    x, weight = torch.zeros(512, 1152, dtype=torch.int8), torch.zeros(48, 1152, dtype=torch.int8)
    assert takes(x, weight)
    assert not takes(x[:64], weight)  # too few rows
    assert not takes(x[:, :128].contiguous(), weight[:, :128].contiguous())  # no overlap
    odd = x[:, :1144].contiguous()
    assert not takes(odd, weight[:, :1144].contiguous())  # rows not 16-byte aligned
    assert not takes(x, weight[:47])  # those of the result neither
    assert not takes(x[:, :1136], weight[:, :1136].contiguous())  # not contiguous
    assert not takes(x.flatten()[8 : 8 + 256 * 1152].view(256, 1152), weight)  # misaligned
    assert not takes(x, weight, torch.float32)  # no room
    assert takes(x, weight, residual=torch.zeros(512, 48, dtype=torch.bfloat16))
    assert not takes(x, weight, residual=torch.zeros(512, 48))  # of another type


@pytest.mark.gpu
class TestOnCuda:
    @pytest.mark.parametrize("backend", ["hopper", "triton"])
    @pytest.mark.parametrize("epilogue", EPILOGUES)
    @pytest.mark.parametrize(
        ("m", "n", "k"),
        [*SHAPES, (17, 1152, 1152), (4097, 3456, 1152), (600, 2304, 1152), (4608, 3072, 3072)],
    )
    def test_int8(self, m, n, k, epilogue, backend):
        given = arguments(m, n, k, epilogue, torch.bfloat16, "cuda")
        x, x_scale, weight, scale, bias, gate, residual, dtype = given
        if backend == "hopper" and torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("no Hopper")
        with use_backend(backend):
            torch.full((m, n), float("nan"), dtype=dtype, device="cuda")  # what empty may find
            y = int8_linear(x, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)
            again = int8_linear(
                x, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual
            )
        assert torch.equal(y, again)
        assert_close(y, given)

    @pytest.mark.parametrize(("m", "n", "k"), [(17, 48, 36), (4097, 3456, 1152)])
    def test_int4(self, m, n, k):
        given = arguments(m, n, k, "everything", torch.bfloat16, "cuda", bits=4)
        x, x_scale, weight, scale, bias, gate, residual, dtype = given
        packed = pack_int4(weight)
        y = int4_linear(x, x_scale, packed, scale, bias, dtype, gate=gate, residual=residual)
        eight = int8_linear(x, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)
        assert torch.equal(y, eight)

    def test_compiled_and_in_a_graph(self):
        x, x_scale, weight, scale, bias, *_ = arguments(
            512, 1152, 1152, "bias", torch.bfloat16, "cuda"
        )

        def run():
            return int8_linear(x, x_scale, weight, scale, bias, torch.bfloat16)

        expected = run()
        assert torch.equal(torch.compile(run, fullgraph=True)(), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, expected)
