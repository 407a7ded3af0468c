"""The row-wise Triton kernels against the definition: interpreted on a CPU, and on CUDA."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch

from viditq import ops

triton = pytest.importorskip("triton")

from viditq.ops.quantize_rows.signature import empty_result  # noqa: E402
from viditq.ops.tiling import REGISTERS, tiling  # noqa: E402

interpreted = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels are compiled, not interpreted, here"
)
# The chip computes with inf and NaN and says nothing; numpy, which interprets, warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GARBAGE = 99


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """Results start as what no test expects, so that every element must be written."""

    def filled(*args):
        codes, scale = empty_result(*args)
        return codes.fill_(GARBAGE), scale.fill_(-GARBAGE)

    for op in ("quantize_rows", "norm_quantize", "gelu_quantize"):
        monkeypatch.setattr(import_module(f"viditq.ops.{op}.triton"), "empty_result", filled)


@pytest.fixture
def chips_fma(monkeypatch):
    """A chip does not round the product in a fused multiply-add; the interpreter does."""
    interpreter = import_module("triton.runtime.interpreter")

    def fma(self, x, y, z):
        x, y, addend = (operand.data.astype(np.float64) for operand in (x, y, z))
        product = x * y  # exact
        total = np.asarray(product + addend)
        rounded = total - product
        error = (product - (total - rounded)) + (addend - rounded)
        # Rounded to odd first, so that the second rounding finds no ties of the first one's making.
        inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
        total = np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)
        return interpreter.TensorHandle(total.astype(np.float32), z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


def kernel(op: str, *args):
    return getattr(import_module(f"viditq.ops.{op}.triton"), op)(*args)


def reference(op: str, *args):
    return getattr(import_module(f"viditq.ops.{op}.reference"), op)(*args)


def assert_same(mine, wanted, *, exact: bool = False) -> None:
    """Codes and scales. Where sums may be in another order, a code in a thousand is off by 1."""
    (codes, scale), (wanted_codes, wanted_scale) = mine, wanted
    assert (codes.dtype, codes.shape) == (torch.int8, wanted_codes.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, wanted_scale.shape)
    if exact:
        assert torch.equal(codes, wanted_codes)
        # On CUDA torch divides by a number by multiplying with its reciprocal.
        torch.testing.assert_close(scale, wanted_scale, rtol=scale.is_cuda * 3e-7, atol=0)
        return
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-5, atol=0)
    assert_near(codes, wanted_codes)


def assert_near(codes, wanted_codes) -> None:
    difference = (codes.int() - wanted_codes.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("block", [0, 4, 128, 512])
# One, odd, below and above a warp's vectors, the models' widths, more than registers hold.
@pytest.mark.parametrize("features", [1, 36, 1152, 1537, 1920, 4608, 13824, 15360, 40000])
def test_parts_cover_a_row_once(features, block, vectors):
    features = math.ceil(features / max(1, block)) * max(1, block)
    tile = tiling(features, block, vectors)
    covered = torch.zeros(2 * features + 128 * tile.warps, dtype=torch.int)
    for part in tile.parts:
        columns = part.first + torch.arange(part.C)[:, None] * part.pitch + torch.arange(part.L)
        covered[columns] += 1
        assert part.end == features
        assert part.padded == bool(columns.max() >= features)
        assert part.pitch % max(1, block) == 0
        assert part.C * part.L % tile.threads == 0
    end = int(covered.sum())
    assert torch.all(covered[:end] == 1)
    assert features <= end <= max(1.1 * features, features + 128 * tile.warps)
    assert tile.threads * tile.residents * tile.options["maxnreg"] <= REGISTERS


# FLUX's attention beside its feed-forward, one column on a side, nothing that is whole vectors.
@pytest.mark.parametrize(
    ("left", "features", "block"),
    [(3072, 15360, 128), (3072, 15360, 0), (1, 37, 0), (36, 37, 0), (100, 1252, 4)],
)
def test_parts_keep_to_one_side(left, features, block):
    tile = tiling(features, block, left=left)
    covered = torch.zeros(features, dtype=torch.int)
    for part in tile.parts:
        columns = part.first + torch.arange(part.C)[:, None] * part.pitch + torch.arange(part.L)
        assert part.end == (left if part.first < left else features)
        assert part.padded == bool(columns.max() >= part.end)
        assert part.C * part.L % tile.threads == 0
        covered[columns[columns < part.end]] += 1
    assert torch.all(covered == 1)


def test_a_row_with_a_left_side_costs_what_it_would_without():
    """In FLUX's single blocks."""
    values = [sum(p.C * p.L for p in tiling(15360, 128, 1, n).parts) for n in (0, 3072)]
    assert values == [16384, 16384]


# Odd; a multiple of no vector; one warp's share; pieces of two widths; several warps a row.
SHAPES = pytest.mark.parametrize(
    ("shape", "hadamard"),
    [
        ((1, 17), 0),
        ((17, 36), 0),
        ((17, 36), 4),
        ((1, 128), 128),
        ((3, 256), 256),
        ((3, 1152), 32),
        ((5, 1152), 128),
        ((2, 1920), 128),
        ((2, 4608), 0),
        ((2, 4608), 128),
    ],
)


# Mantissas: the least, the largest, and some of many digits; exponents: usual, and far.
SCALES = pytest.mark.parametrize("scale", [1.0, 1 - 2**-24, 0.1, 1 / 3, 0.7 / 127, 1e-20, 3e30])


def beside_ties(scale):
    """Every tie of two codes and, with some to spare, eight numbers on either side."""
    steps = torch.arange(-130, 131, device=scale.device)[:, None] + 0.5
    near = torch.arange(-8, 9, dtype=torch.int32, device=scale.device)
    return ((steps * scale).view(torch.int32) + near).view(torch.float32)


@interpreted
class TestQuantizeRows:
    @SHAPES
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_the_reference(self, shape, hadamard, dtype):
        x, smooth = torch.randn(shape).to(dtype), torch.rand(shape[1]) + 0.5
        bits = {torch.float32: 8, torch.bfloat16: 6, torch.float16: 4}[dtype]
        for arguments in ((x, smooth, hadamard, bits), (x, None, hadamard, 8)):
            wanted = reference("quantize_rows", *arguments)
            assert_same(kernel("quantize_rows", *arguments), wanted, exact=hadamard == 0)

    @SHAPES
    def test_with_a_center(self, shape, hadamard):
        x, smooth, center = (
            torch.randn(shape) + 2,
            torch.rand(shape[1]) + 0.5,
            torch.randn(shape[1]),
        )
        for balance in (smooth, None):
            arguments = (x.bfloat16(), balance, hadamard, 8, None, center)
            wanted = reference("quantize_rows", *arguments)
            assert_same(kernel("quantize_rows", *arguments), wanted)

    def test_ties_go_to_even(self):
        x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
        codes, scale = kernel("quantize_rows", x, None, 0, 8)
        assert scale.tolist() == [1.0]
        assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]

    @pytest.mark.parametrize("hadamard", [0, 32])
    def test_rows_of_no_ordinary_numbers(self, hadamard):
        """Zeros, values too small and just large enough, inf and NaN beside ordinary rows."""
        x = torch.randn(9, 160)
        x[1] = 0
        x[2] *= 1e-38
        x[3] *= 1e-29
        x[4, 7], x[5, 40], x[6, 159] = torch.inf, -torch.inf, torch.nan
        x[7] = torch.nan
        codes, scale = kernel("quantize_rows", x, None, hadamard, 8)
        wanted_codes, wanted_scale = reference("quantize_rows", x, None, hadamard, 8)
        assert_same((codes[:4], scale[:4]), (wanted_codes[:4], wanted_scale[:4]))
        assert_same((codes[8:], scale[8:]), (wanted_codes[8:], wanted_scale[8:]))
        assert not codes[[1, 2, 4, 5, 6, 7]].any()
        assert not scale[[1, 2]].any()
        assert not scale[4:8].isfinite().any()

    # Rows with gaps are read in place, columns with gaps are copied.
    @pytest.mark.parametrize("layout", ["slice", "transposed"])
    def test_layouts(self, layout):
        x = torch.randn(6, 80)[:, 16:52] if layout == "slice" else torch.randn(36, 6).T
        smooth = (torch.rand(72) + 0.5)[::2]
        wanted = reference("quantize_rows", x, smooth, 0, 8)
        assert_same(kernel("quantize_rows", x, smooth, 0, 8), wanted, exact=True)

    def test_no_rows_and_what_only_the_reference_computes(self):
        smooth = torch.ones(8)
        codes, scale = kernel("quantize_rows", torch.empty(0, 8), smooth, 4, 8)
        assert (codes.shape, scale.shape) == ((0, 8), (0,))
        x = torch.randn(3, 8, dtype=torch.float64)
        wanted = reference("quantize_rows", x, smooth, 4, 8)
        assert_same(kernel("quantize_rows", x, smooth, 4, 8), wanted, exact=True)
        with pytest.raises(ValueError, match="does not divide"):
            kernel("quantize_rows", torch.randn(3, 36), None, 8, 8)

    @SHAPES
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_static_scale(self, shape, hadamard, dtype):
        """About a value in ten saturates."""
        x, smooth = torch.randn(shape).to(dtype), torch.rand(shape[1]) + 0.5
        for bits, balance in ((8, None), (6, smooth), (4, smooth)):
            arguments = (x, balance, hadamard, bits, torch.tensor(1.7 / (2 ** (bits - 1) - 1)))
            wanted = reference("quantize_rows", *arguments)
            assert_same(kernel("quantize_rows", *arguments), wanted, exact=hadamard == 0)

    @SCALES
    def test_static_codes_are_the_rounded_quotients(self, chips_fma, scale):
        """On and beside every tie, where a product with the reciprocal may go the other way."""
        scale = torch.tensor(scale)
        x = beside_ties(scale)
        codes, _ = kernel("quantize_rows", x, None, 0, 8, scale)
        wanted = (x / scale).round().clamp(-127, 127)
        assert torch.equal(codes, wanted.to(torch.int8))
        product = (x * scale.reciprocal()).round().clamp(-127, 127)
        assert torch.equal(product, wanted) == (scale == 1)

    @pytest.mark.parametrize("scale", [0.0, 0.1])
    @pytest.mark.parametrize("hadamard", [0, 4])
    def test_static_scale_and_no_ordinary_numbers(self, scale, hadamard):
        x = torch.zeros(4, 36)
        x[0, ::4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 0, 1, -1, 1e-45])
        x[1, 5], x[2] = torch.nan, torch.inf
        arguments = (x, None, hadamard, 8, torch.tensor(scale))
        wanted = reference("quantize_rows", *arguments)
        assert_same(kernel("quantize_rows", *arguments), wanted, exact=True)

    def test_two_runs_are_equal(self):
        arguments = (torch.randn(5, 1152), torch.rand(1152) + 0.5, 128, 8)
        first = kernel("quantize_rows", *arguments)
        assert_same(kernel("quantize_rows", *arguments), first, exact=True)


@interpreted
class TestNormQuantize:
    @pytest.mark.parametrize(("features", "hadamard"), [(17, 0), (36, 4), (1152, 128)])
    # Modulation: none, one for all, for each batch, unequal numbers of them, one for each token.
    @pytest.mark.parametrize("batches", [None, (1, 1), (3, 3), (2, 3), (6, 6)])
    def test_is_the_reference(self, features, hadamard, batches):
        x, smooth = torch.randn(6, features) * 3 + 1, torch.rand(features) + 0.5
        weight, bias = torch.randn(features).bfloat16(), torch.randn(features)
        gain, shift = (torch.randn(b, features) for b in batches) if batches else (None, None)
        for arguments in (
            (x.bfloat16(), "layer", 1e-6, weight, bias, gain, shift, smooth, hadamard, 8),
            (x, "rms", 1e-5, weight, None, gain, None, None, hadamard, 6),
            (x, "layer", 1e-5, None, bias, None, shift, smooth, 0, 4),
        ):
            wanted = reference("norm_quantize", *arguments)
            assert_same(kernel("norm_quantize", *arguments), wanted)
            arguments = (*arguments, torch.tensor(0.02))
            codes, wanted = (f("norm_quantize", *arguments)[0] for f in (kernel, reference))
            assert_near(codes, wanted)
            arguments = (*arguments[:-1], None, torch.randn(features))
            wanted = reference("norm_quantize", *arguments)
            assert_same(kernel("norm_quantize", *arguments), wanted)

    def test_several_warps_a_row_and_modulation_as_models_slice_it(self):
        x, modulation = torch.randn(4, 4608), torch.randn(2, 3, 4608).bfloat16()
        shift, gain = modulation[:, 0], modulation[:, 1]
        arguments = (x, "layer", 1e-6, None, None, gain, shift, None, 128, 8)
        wanted = reference("norm_quantize", *arguments)
        assert_same(kernel("norm_quantize", *arguments), wanted)

    def test_a_row_that_is_not_finite_leaves_the_others_alone(self):
        x, gain = torch.randn(6, 36), torch.randn(2, 36)
        clean = reference("norm_quantize", x, "layer", 1e-6, None, None, gain, gain, None, 4, 8)
        x[1, 3], x[4, 35] = torch.inf, torch.nan
        codes, scale = kernel("norm_quantize", x, "layer", 1e-6, None, None, gain, gain, None, 4, 8)
        assert not codes[[1, 4]].any()
        assert not scale[[1, 4]].isfinite().any()
        kept = [0, 2, 3, 5]
        assert_same((codes[kept], scale[kept]), (clean[0][kept], clean[1][kept]))

    @pytest.mark.parametrize("kind", ["layer", "rms"])
    def test_nothing_but_the_norm(self, kind):
        arguments = (torch.randn(3, 36), kind, 1e-6, None, None, None, None, None, 0, 8)
        wanted = reference("norm_quantize", *arguments)
        assert_same(kernel("norm_quantize", *arguments), wanted)

    def test_rows_of_one_value(self):
        """Nothing is left of them but the shift."""
        x, shift = torch.full((2, 36), 7.0), torch.randn(1, 36)
        arguments = (x, "layer", 1e-6, None, None, None, shift, None, 0, 8)
        wanted = reference("norm_quantize", *arguments)
        assert_same(kernel("norm_quantize", *arguments), wanted)


@interpreted
class TestGeluQuantize:
    @pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
    @pytest.mark.parametrize("gated", [False, True])
    @pytest.mark.parametrize(("features", "hadamard"), [(17, 0), (36, 4), (1152, 128)])
    def test_is_the_reference(self, kind, gated, features, hadamard):
        x, smooth = torch.randn(5, features * (1 + gated)) * 3, torch.rand(features) + 0.5
        for arguments in (
            (x, kind, gated, smooth, hadamard, 8),
            (x.bfloat16(), kind, gated, None, hadamard, 6),
        ):
            wanted = reference("gelu_quantize", *arguments)
            assert_same(kernel("gelu_quantize", *arguments), wanted)
            arguments = (*arguments, None, torch.tensor(0.02))
            codes, wanted = (f("gelu_quantize", *arguments)[0] for f in (kernel, reference))
            assert_near(codes, wanted)
            arguments = (*arguments[:-1], None, torch.rand(features))
            wanted = reference("gelu_quantize", *arguments)
            assert_same(kernel("gelu_quantize", *arguments), wanted)

    @pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
    def test_far_from_zero(self, kind):
        """Where an exponential is 0 or inf."""
        x = torch.tensor([[-1e30, -200.0, -90.0, -20.0, 0.0, 20.0, 200.0, 300.0]])
        wanted = reference("gelu_quantize", x, kind, False, None, 0, 8)
        assert_same(kernel("gelu_quantize", x, kind, False, None, 0, 8), wanted)

    # Neither a whole vector; rotated; pieces of two widths, the left one padded; a block across.
    @pytest.mark.parametrize(
        ("before", "features", "hadamard"),
        [(1, 17, 0), (17, 1, 0), (12, 36, 4), (384, 1152, 128), (3072, 4608, 128), (6, 10, 4)],
    )
    @pytest.mark.parametrize("gated", [False, True])
    def test_columns_on_the_left(self, before, features, hadamard, gated):
        smooth = torch.rand(before + features) + 0.5
        # Both with gaps between their rows, as views of wider tensors.
        left = torch.randn(3, before + 5)[:, :before]
        x = torch.randn(3, 7 + features * (1 + gated))[:, 7:] * 3
        for arguments in (
            (x, "gelu_tanh", gated, smooth, hadamard, 8, left),
            (x, "gelu_tanh", gated, smooth, hadamard, 8, left, None, smooth.flip(0)),
            (x.bfloat16(), "silu", gated, None, hadamard, 6, left),
        ):
            wanted = reference("gelu_quantize", *arguments)
            assert_same(kernel("gelu_quantize", *arguments), wanted)

    @pytest.mark.parametrize("side", [0, 1])
    def test_the_largest_value_may_be_on_either_side(self, side):
        left, x = torch.randn(2, 36), torch.randn(2, 72)
        (left, x)[side][1, 5] = 50.0
        (left, x)[side][0, 7] = torch.nan
        arguments = (x, "gelu", False, None, 0, 8, left)
        codes, scale = kernel("gelu_quantize", *arguments)
        wanted_codes, wanted_scale = reference("gelu_quantize", *arguments)
        assert_same((codes[1:], scale[1:]), (wanted_codes[1:], wanted_scale[1:]))
        assert not codes[0].any()
        assert scale[0].isnan()

    def test_no_columns_on_one_side(self):
        x, none = torch.randn(3, 36), torch.empty(3, 0)
        wanted = reference("gelu_quantize", x, "gelu", False, None, 4, 8)
        assert_same(kernel("gelu_quantize", x, "gelu", False, None, 4, 8, none), wanted)
        wanted = reference("quantize_rows", x, None, 4, 8)
        mine = kernel("gelu_quantize", none, "gelu", False, None, 4, 8, x)
        assert_same(mine, wanted, exact=True)


def cuda_cases():
    """What is called and how: at real sizes, through the public ops, an odd number of tokens."""

    def tensors(rows, *shapes, dtype=torch.bfloat16):
        return torch.randn(rows, *shapes, device="cuda", dtype=dtype)

    def smooth(features):
        return torch.rand(features, device="cuda") + 0.5

    for features in (1152, 4608, 13824):
        for hadamard in (0, 128):
            name = f"{features}-{hadamard}"
            yield pytest.param(
                lambda k=features, h=hadamard: (
                    ops.quantize_rows,
                    (tensors(4097, k), smooth(k), h),
                    {},
                    h == 0,
                ),
                id=f"quantize_rows-{name}",
            )
            yield pytest.param(
                lambda k=features, h=hadamard: (
                    ops.norm_quantize,
                    (tensors(4098, k), "layer"),
                    {
                        "gain": tensors(2, 6, k)[:, 1],
                        "shift": tensors(2, 6, k)[:, 0],
                        "smooth": smooth(k),
                        "hadamard": h,
                    },
                    False,
                ),
                id=f"norm_quantize-{name}",
            )
            for kind, gated in (("gelu_tanh", False), ("gelu", True), ("silu", True)):
                yield pytest.param(
                    lambda k=features, h=hadamard, kind=kind, gated=gated: (
                        ops.gelu_quantize,
                        (tensors(4097, k * (1 + gated)), kind),
                        {"gated": gated, "smooth": smooth(k), "hadamard": h},
                        False,
                    ),
                    id=f"gelu_quantize-{kind}-{name}",
                )
    for hadamard in (0, 128):
        yield pytest.param(
            lambda h=hadamard: (
                ops.gelu_quantize,
                (tensors(4097, 21504)[:, 9216:], "gelu_tanh"),
                {"left": tensors(4097, 3072), "smooth": smooth(15360), "hadamard": h},
                False,
            ),
            id=f"gelu_quantize-left-{hadamard}",
        )


CUDA_CASES = list(cuda_cases())


@pytest.mark.gpu
class TestOnCuda:
    @pytest.mark.parametrize("case", CUDA_CASES)
    def test_is_the_reference(self, case):
        op, args, kwargs, _ = case()
        with ops.use_backend("reference"):
            wanted = op(*args, **kwargs)
        with ops.use_backend("triton"):
            mine, again = op(*args, **kwargs), op(*args, **kwargs)
        assert_same(mine, wanted)  # where an edge between codes is near, a fma may cross it
        assert_same(again, mine, exact=True)

    @pytest.mark.parametrize("case", CUDA_CASES)
    def test_static_scale(self, case):
        op, args, kwargs, exact = case()
        scale = torch.tensor(0.02, device="cuda")
        with ops.use_backend("reference"):
            wanted, _ = op(*args, **kwargs, scale=scale)
        with ops.use_backend("triton"):
            codes, returned = op(*args, **kwargs, scale=scale)
        assert returned is scale
        assert_near(codes, wanted)
        assert not exact or torch.equal(codes, wanted)

    @pytest.mark.parametrize("case", CUDA_CASES)
    def test_with_a_center(self, case):
        op, args, kwargs, _ = case()
        center = torch.rand(op(*args, **kwargs)[0].shape[1], device="cuda").bfloat16()
        with ops.use_backend("reference"):
            wanted = op(*args, **kwargs, center=center)
        with ops.use_backend("triton"):
            mine = op(*args, **kwargs, center=center)
        assert_same(mine, wanted)

    @SCALES
    def test_static_codes_are_the_rounded_quotients(self, scale):
        scale = torch.tensor(scale, device="cuda")
        x = beside_ties(scale)
        with ops.use_backend("triton"):
            codes, _ = ops.quantize_rows(x, scale=scale)
        assert torch.equal(codes, (x / scale).round().clamp(-127, 127).to(torch.int8))

    @pytest.mark.parametrize("case", CUDA_CASES[:5])
    def test_compiled(self, case):
        op, args, kwargs, _ = case()
        with ops.use_backend("triton"):
            eager = op(*args, **kwargs)
            torch.compiler.reset()
            compiled = torch.compile(lambda *a: op(*a, **kwargs), fullgraph=True)(*args)
        assert_same(compiled, eager, exact=True)

    @pytest.mark.parametrize("case", CUDA_CASES[:5])
    def test_in_a_graph(self, case):
        op, args, kwargs, _ = case()
        x, *rest = args
        with ops.use_backend("triton"):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                op(x, *rest, **kwargs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = op(x, *rest, **kwargs)
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert_same(captured, op(x, *rest, **kwargs), exact=True)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("shape", "hadamard"),
        [((1, 17), 0), ((17, 36), 4), ((1, 128), 128), ((3, 4095), 0), ((5, 40000), 32)],
    )
    def test_ugly_shapes(self, shape, hadamard, dtype):
        x = torch.randn(shape, device="cuda").to(dtype)
        smooth = torch.rand(shape[1], device="cuda") + 0.5
        with ops.use_backend("reference"):
            wanted = ops.quantize_rows(x, smooth, hadamard)
        with ops.use_backend("triton"):
            assert_same(ops.quantize_rows(x, smooth, hadamard), wanted)

    def test_more_elements_than_an_int32_counts(self):
        """The last rows of a matrix of 2³¹ elements and more."""
        x = torch.zeros(2**31 // 15360 + 3, 15360, device="cuda", dtype=torch.bfloat16)
        x[-2:] = torch.randn(2, 15360, device="cuda")
        with ops.use_backend("triton"):
            codes, scale = ops.quantize_rows(x)
        wanted = reference("quantize_rows", x[-3:], None, 0, 8)
        assert_same((codes[-3:], scale[-3:]), wanted)
        assert not scale[:-2].any()

    @pytest.mark.parametrize("hadamard", [0, 128])
    def test_rows_that_are_not_finite(self, hadamard):
        x = torch.randn(257, 1152, device="cuda", dtype=torch.bfloat16)
        x[3, 5], x[4, 1151], x[200] = torch.inf, torch.nan, 0
        with ops.use_backend("triton"):
            codes, scale = ops.quantize_rows(x, hadamard=hadamard)
        assert not codes[[3, 4, 200]].any()
        assert scale.isfinite().logical_not().nonzero().flatten().tolist() == [3, 4]
        assert scale[200] == 0
