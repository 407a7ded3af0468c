"""``gelu_quantize`` in one pass over the input; how, is in :mod:`viditq.ops.rows`."""

import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.gelu_quantize import reference
from viditq.ops.launch import dense, launch
from viditq.ops.quantize_rows.signature import empty_result
from viditq.ops.rows import (
    INTERPRETED,
    centered_reciprocals,
    floats,
    load_row,
    programs,
    static_steps,
    store_quantized,
    takes,
)
from viditq.ops.tiling import tiling

__all__ = ["gelu_quantize", "kernel"]


@triton.jit
def _times_sigmoid(x, power):
    """``x / (1 + 2**power)``, at most a few ulp off.

    Triton's own exponential and quotient also serve subnormal numbers, which cannot matter in a sum
    with 1; that would double the instructions of the kernel, and it is these that limit it.
    """
    if INTERPRETED:
        return x / (1.0 + tl.exp2(power))
    else:
        exp = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], tl.float32, is_pure=True, pack=1
        )
        reciprocal = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + exp], tl.float32, is_pure=True, pack=1
        )
        return x * reciprocal


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # 0.5 · (1 + tanh(u)) = 1 / (1 + exp(-2u)), with u = √(2/π) · (x + 0.044715 · x³)
        return _times_sigmoid(x, x * tl.fma(x * x, -0.10294324, -2.3022082))
    else:
        return _times_sigmoid(x, -1.4426950408889634 * x)


@triton.jit
def _load(x, left, stride, left_stride, row, there, GATED: tl.constexpr, TILE: tl.constexpr):
    """What a row is made of, and what is to be activated of it."""
    first = x + row * stride
    before = left if left is None else left + row * left_stride
    values = load_row(first, there, TILE, before)
    gates = values
    if GATED:
        gates = load_row(first + (TILE.features - TILE.left), there, TILE, before)
    return values, gates


@triton.jit(do_not_specialize=["M"])
def kernel(
    x,
    left,
    smooth,
    center,
    static,
    codes,
    scale,
    stride,
    left_stride,
    M,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    QMAX: tl.constexpr,
    TILE: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64)
    following = _load(x, left, stride, left_stride, start, True, GATED, TILE)
    factors, offsets = centered_reciprocals(smooth, center, TILE)
    steps = static_steps(static, QMAX, TILE)
    for i in tl.range(tl.program_id(0), M, tl.num_programs(0), num_stages=1):
        row, after = tl.cast(i, tl.int64), i + tl.num_programs(0)
        loaded = floats(following[0], TILE)
        gates = floats(following[1], TILE)
        following = _load(x, left, stride, left_stride, after.to(tl.int64), after < M, GATED, TILE)
        values = ()
        for p in tl.static_range(len(TILE.parts)):
            value = loaded[p]
            if TILE.parts[p].first >= TILE.left:
                activated = _activate(gates[p], KIND)
                value = value * activated if GATED else activated
            if center is None:
                values += (value * factors[p],)
            else:
                values += (tl.fma(value, factors[p], offsets[p]),)
        store_quantized(values, codes + row * TILE.features, scale + row, steps, QMAX, TILE)


def gelu_quantize(
    x: Tensor,
    kind: str,
    gated: bool,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    left: Tensor | None = None,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the reference: (M, K) or (M, 2K), left (M, L) float -> codes (M, L + K) and scale."""
    rows, features = x.shape[0], x.shape[1] // 2 if gated else x.shape[1]
    before = 0
    if left is not None:
        before = left.shape[1]
        features += before
    if not (takes(x, features, hadamard) and (left is None or takes(left, before, hadamard))):
        return reference.gelu_quantize(x, kind, gated, smooth, hadamard, bits, left, scale, center)
    vectors = 1 if center is None else 2
    x, tile = dense(x), tiling(features, hadamard, left=before, vectors=vectors)
    left, smooth, center = (t if t is None else dense(t) for t in (left, smooth, center))
    codes, own = empty_result(x, features, scale)
    launch(
        kernel,
        programs(x, tile),
        (x, left, smooth, center, scale, codes, own),
        (x.stride(0), 0 if left is None else left.stride(0), rows),
        (kind, gated, 2 ** (bits - 1) - 1, tile),
        tile.options,
    )
    return codes, own
