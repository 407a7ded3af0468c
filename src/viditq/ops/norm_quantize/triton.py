"""``norm_quantize`` in one pass over the input; how, is in :mod:`viditq.ops.rows`.

A program keeps to rows of one batch. Whatever is the same for all of them, the norm's weight and
bias, the modulation and ``1/smooth``, it combines into one factor and one offset per channel first.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import dense, launch
from viditq.ops.norm_quantize import reference
from viditq.ops.quantize_rows.signature import empty_result
from viditq.ops.rows import (
    clear_padding,
    floats,
    load_part,
    load_row,
    programs,
    reciprocals,
    row_sum,
    static_steps,
    store_quantized,
    takes,
)
from viditq.ops.tiling import tiling

__all__ = ["kernel", "norm_quantize"]


@triton.jit
def _affine(weight, bias, gain, shift, smooth, center, TILE: tl.constexpr):
    """``((n · weight + bias) · (1 + gain) + shift - center) / smooth`` as ``n · factor + offset``.

    Each is the parts (C, L) fp32, zeros past the row's end.
    """
    factors = ()
    offsets = ()
    inverse = reciprocals(smooth, TILE)
    for p in tl.static_range(len(TILE.parts)):
        modulation = 1.0
        if gain is not None:
            modulation = 1.0 + load_part(gain, 0.0, TILE, p).to(tl.float32)
        factor = modulation * inverse[p]
        if weight is not None:
            factor = load_part(weight, 0.0, TILE, p).to(tl.float32) * factor
        offset = tl.full([1, 1], 0.0, tl.float32)
        if bias is not None:
            offset = load_part(bias, 0.0, TILE, p).to(tl.float32) * modulation
        if shift is not None:
            offset = offset + load_part(shift, 0.0, TILE, p).to(tl.float32)
        if center is not None:
            offset = offset - load_part(center, 0.0, TILE, p).to(tl.float32)
        factors += (clear_padding(factor, TILE, p),)
        offsets += (offset * inverse[p],)
    return factors, offsets


@triton.jit
def _normalized(values, eps, CENTER: tl.constexpr, TILE: tl.constexpr):
    """The parts (C, L) fp32, less their mean if ``CENTER``, over their root mean square."""
    if CENTER:
        mean = tl.div_rn(row_sum(values, TILE), 1.0 * TILE.features)
        centered = ()
        for p in tl.static_range(len(TILE.parts)):
            centered += (clear_padding(values[p] - mean, TILE, p),)
        values = centered
    squares = ()
    for p in tl.static_range(len(TILE.parts)):
        squares += (values[p] * values[p],)
    mean_square = tl.div_rn(row_sum(squares, TILE), 1.0 * TILE.features)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps))
    normalized = ()
    for p in tl.static_range(len(TILE.parts)):
        normalized += (values[p] * rstd,)
    return normalized


@triton.jit(do_not_specialize=["rows_per_batch", "programs_per_batch"])
def kernel(
    x,
    weight,
    bias,
    gain,
    shift,
    smooth,
    center,
    static,
    codes,
    scale,
    eps,
    stride,
    gain_stride,
    shift_stride,
    rows_per_batch,
    programs_per_batch,
    CENTER: tl.constexpr,
    QMAX: tl.constexpr,
    TILE: tl.constexpr,
):
    batch = (tl.program_id(0) // programs_per_batch).to(tl.int64)
    if gain is not None:
        gain += batch * gain_stride
    if shift is not None:
        shift += batch * shift_stride
    start = tl.program_id(0) % programs_per_batch
    x += batch * rows_per_batch * stride
    following = load_row(x + start.to(tl.int64) * stride, True, TILE)
    factors, offsets = _affine(weight, bias, gain, shift, smooth, center, TILE)
    steps = static_steps(static, QMAX, TILE)
    for i in tl.range(start, rows_per_batch, programs_per_batch, num_stages=1):
        row, after = batch * rows_per_batch + i, i + programs_per_batch
        loaded = floats(following, TILE)
        following = load_row(x + after.to(tl.int64) * stride, after < rows_per_batch, TILE)
        values = _normalized(loaded, eps, CENTER, TILE)
        results = ()
        for p in tl.static_range(len(TILE.parts)):
            results += (tl.fma(values[p], factors[p], offsets[p]),)
        store_quantized(results, codes + row * TILE.features, scale + row, steps, QMAX, TILE)


def norm_quantize(
    x: Tensor,
    kind: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8 and scale (M,) fp32, (0,) if one is given."""
    rows, features = x.shape
    if not takes(x, features, hadamard):
        return reference.norm_quantize(
            x, kind, eps, weight, bias, gain, shift, smooth, hadamard, bits, scale, center
        )
    x, tile = dense(x), tiling(features, hadamard, vectors=2)
    vectors = (weight, bias, smooth, center)
    weight, bias, smooth, center = (v if v is None else dense(v) for v in vectors)
    gain, shift, batches = _of_one_length(gain, shift)
    codes, own = empty_result(x, features, scale)
    shared = programs(x, tile, batches)
    strides = (0 if v is None else v.stride(0) for v in (x, gain, shift))
    launch(
        kernel,
        batches * shared,
        (x, weight, bias, gain, shift, smooth, center, scale, codes, own),
        (eps, *strides, rows // batches, shared),
        (kind == "layer", 2 ** (bits - 1) - 1, tile),
        tile.options,
    )
    return codes, own


def _of_one_length(
    gain: Tensor | None, shift: Tensor | None
) -> tuple[Tensor | None, Tensor | None, int]:
    """Both with as many vectors, each for as many consecutive rows, and that number."""
    lengths = {v.shape[0] for v in (gain, shift) if v is not None}
    batches = math.lcm(*lengths)
    if len(lengths) > 1:
        gain, shift = (
            v if v is None else v.repeat_interleave(batches // v.shape[0], 0) for v in (gain, shift)
        )
    return (
        gain if gain is None else dense(gain),
        shift if shift is None else dense(shift),
        batches,
    )
