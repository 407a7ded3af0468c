"""What the row-wise Triton kernels share: loads of a row, the rotation, scales and codes.

A program holds a whole row in registers, so that it is read once: its largest magnitude must be
known before its first code, unless the scale is static. It walks over many rows, because vectors
per channel (the reciprocal of ``smooth`` above all) are loaded and combined once per program, and
loads the next row before it computes this one: few warps fit beside each other, and would all wait
for memory. How a row is cut into the parts that it holds is in :mod:`viditq.ops.tiling`.

Compiled, a product and a sum behind it become one fma. So a value beside the edge between two codes
may get the other one than it gets from the definition; without a rotation it is a tie there.

Declined: other dtypes than :data:`FLOATS`, which run the reference. Rows beyond about 16 thousand
features come out right, but no longer fit the registers. Sums of a rotation are scaled at the end,
so that inputs above 1e36 overflow there.
"""
# What triton.jit decorates is Triton's language; pyright takes it for Python.
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import multiprocessors
from viditq.ops.quantize_rows import reference
from viditq.ops.tiling import Tiling

__all__ = [
    "INTERPRETED",
    "centered_reciprocals",
    "clear_padding",
    "floats",
    "load_part",
    "load_row",
    "programs",
    "reciprocals",
    "row_sum",
    "static_steps",
    "store_quantized",
    "takes",
]

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
SMALLEST = tl.constexpr(reference.SMALLEST)
INFINITY = tl.constexpr(0x7F800000)
"""Its bits in fp32. Those of a NaN, the sign apart, are above."""
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
ROUNDING = tl.constexpr(1.5 * 2**23)
"""Added to a small number it leaves the nearest integer, ties to even, in the lowest bits."""


def takes(x: Tensor, features: int, hadamard: int) -> bool:
    """Whether kernels compute this; the reference does the rest and finds what is wrong."""
    rotates = hadamard <= 1 or (hadamard & (hadamard - 1) == 0 and features % hadamard == 0)
    return x.dtype in FLOATS and x.numel() > 0 and rotates


def programs(x: Tensor, tile: Tiling, groups: int = 1) -> int:
    """How many programs share each of the ``groups`` that the rows of ``x`` are in."""
    resident = multiprocessors(x.device) * tile.residents
    return min(x.shape[0] // groups, math.ceil(resident / groups))


@triton.jit
def _columns(TILE: tl.constexpr, P: tl.constexpr):
    """The columns of part ``P``: (C, L) int32."""
    chunk = tl.arange(0, TILE.parts[P].C) * TILE.parts[P].pitch
    return TILE.parts[P].first + chunk[:, None] + tl.arange(0, TILE.parts[P].L)[None, :]


@triton.jit
def load_part(pointer, other: tl.constexpr, TILE: tl.constexpr, P: tl.constexpr):
    """(K,) -> part ``P`` of it, (C, L), with ``other`` past its end."""
    columns = _columns(TILE, P)
    if TILE.parts[P].padded:
        return tl.load(pointer + columns, mask=columns < TILE.parts[P].end, other=other)
    else:
        return tl.load(pointer + columns)


@triton.jit
def load_row(pointer, there, TILE: tl.constexpr, left=None):
    """(K,) any float -> its parts (C, L) of that type, zeros past their end; nothing unless
    ``there``.

    Where the tiling has columns on the left, they are those of ``left``, and ``pointer`` has the
    others.
    """
    parts = ()
    for p in tl.static_range(len(TILE.parts)):
        columns, mask = _columns(TILE, p), there
        if TILE.parts[p].padded:
            mask = there & (columns < TILE.parts[p].end)
        if TILE.parts[p].first < TILE.left:
            parts += (tl.load(left + columns, mask=mask, other=0.0),)
        else:
            parts += (tl.load(pointer + (columns - TILE.left), mask=mask, other=0.0),)
    return parts


@triton.jit
def floats(parts, TILE: tl.constexpr):
    """Parts in fp32."""
    converted = ()
    for p in tl.static_range(len(TILE.parts)):
        converted += (parts[p].to(tl.float32),)
    return converted


@triton.jit
def reciprocals(smooth, TILE: tl.constexpr):
    """``1/smooth``: its parts (C, L) fp32; ones if there is none."""
    parts = ()
    for p in tl.static_range(len(TILE.parts)):
        if smooth is None:
            parts += (tl.full([1, 1], 1.0, tl.float32),)
        else:
            parts += (tl.div_rn(1.0, load_part(smooth, 1.0, TILE, p).to(tl.float32)),)
    return parts


@triton.jit
def centered_reciprocals(smooth, center, TILE: tl.constexpr):
    """``(x - center) / smooth`` as ``x · factor + offset``: the parts (C, L) fp32 of both, and no
    offsets without a center."""
    factors = reciprocals(smooth, TILE)
    offsets = ()
    if center is not None:
        for p in tl.static_range(len(TILE.parts)):
            offsets += (-load_part(center, 0.0, TILE, p).to(tl.float32) * factors[p],)
    return factors, offsets


@triton.jit
def clear_padding(x, TILE: tl.constexpr, P: tl.constexpr):
    """Part ``P`` with zeros past the row's end."""
    if TILE.parts[P].padded:
        return tl.where(_columns(TILE, P) < TILE.parts[P].end, x, 0.0)
    else:
        return x


@triton.jit
def _by_thread(x, TILE: tl.constexpr):
    """(C, L) -> (threads, values of each), where every value already is."""
    return x.reshape(TILE.threads, x.numel // TILE.threads)


@triton.jit
def row_sum(values, TILE: tl.constexpr):
    """The sum over all parts (C, L)."""
    total = tl.full([TILE.threads], 0, values[0].dtype)
    for p in tl.static_range(len(TILE.parts)):
        total += tl.sum(_by_thread(values[p], TILE), 1)
    return tl.sum(total, 0)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_amax(values, TILE: tl.constexpr):
    """The largest magnitude of all parts (C, L); NaN if there is one."""
    if INTERPRETED:
        return _interpreted_amax(values, TILE)
    else:
        largest = tl.full([TILE.threads], 0.0, tl.float32)
        for p in tl.static_range(len(TILE.parts)):
            own = tl.reduce(_by_thread(tl.abs(values[p]), TILE), 1, _larger)
            largest = _larger(largest, own)
        return tl.reduce(largest, 0, _larger)


@triton.jit
def _interpreted_amax(values, TILE: tl.constexpr):
    """The same in integers, where a NaN is the largest: the interpreter knows no other reductions
    than sums and the usual extremes, which leave NaN out."""
    largest = tl.full([1], 0, tl.int32)
    for p in tl.static_range(len(TILE.parts)):
        bits = values[p].to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.maximum(largest, tl.max(tl.max(bits, 1), 0))
    return tl.max(largest, 0).to(tl.float32, bitcast=True)


@triton.jit
def _butterfly(values, STEP: tl.constexpr, TILE: tl.constexpr, P: tl.constexpr):
    """Part ``P`` after the sums and differences of columns of a chunk that are ``STEP`` apart.

    Within a part, the partner of a column is what the sum of both leaves without it, in integers
    so that nothing is rounded. Compiled, that sum is one exchange between lanes or none, and the
    rest cancels.
    """
    L: tl.constexpr = TILE.parts[P].L
    x = values[P]
    if STEP < L:
        pairs = x.reshape(x.numel // (2 * STEP), 2, STEP)
        bits = pairs.to(tl.int32, bitcast=True)
        partner = (tl.sum(bits, 1, keep_dims=True) - bits).to(tl.float32, bitcast=True)
        sign = (1 - 2 * tl.arange(0, 2)).to(tl.float32)[None, :, None]
        return tl.fma(pairs, sign, partner).reshape(x.shape)
    elif TILE.parts[P].index & (STEP // L):
        return values[P - STEP // L] - x
    else:
        return x + values[P + STEP // L]


@triton.jit
def _rotate(values, TILE: tl.constexpr):
    """The parts (C, L) fp32 with each block of columns times the Hadamard matrix of ±1."""
    STAGES: tl.constexpr = TILE.butterflies
    for i in tl.static_range(STAGES):
        parts = ()
        for p in tl.static_range(len(TILE.parts)):
            parts += (_butterfly(values, 1 << i, TILE, p),)
        values = parts
    return values


@triton.jit
def static_steps(static, QMAX: tl.constexpr, TILE: tl.constexpr):
    """What :func:`store_quantized` takes of a static scale (), or of none.

    The scale of the rotation's sums, negated, its reciprocal, and the largest sum in its range.
    """
    if static is None:
        return ()
    else:
        step = tl.div_rn(tl.maximum(tl.load(static), TINY), TILE.norm)
        return -step, tl.div_rn(1.0, step), tl.minimum(step * QMAX, LARGEST)


@triton.jit
def store_quantized(values, codes, scale, steps, QMAX: tl.constexpr, TILE: tl.constexpr):
    """Rotate, quantize and store a row.

    Args:
        values: the parts (C, L) fp32.
        codes: pointer to (K,) int8.
        scale: pointer to one fp32, written unless there is a static one.
        steps: what :func:`static_steps` made.
    """
    values = _rotate(values, TILE)
    if len(steps) == 0:
        _store_dynamic(values, codes, scale, QMAX, TILE)
    else:
        _store_static(values, codes, steps, TILE)


@triton.jit
def _codes(steps):
    """(C, L) fp32 within ±127 -> int8, ties to even."""
    return (steps + ROUNDING).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _store_static(values, codes, steps, TILE: tl.constexpr):
    negated, inverse, limit = steps
    for p in tl.static_range(len(TILE.parts)):
        x = tl.where(values[p] == values[p], values[p], 0.0)
        x = tl.clamp(x, -limit, limit)
        # The product is up to 1.5 ulp off; what it leaves over corrects it to the quotient as
        # divided by the chip or torch (Brisebarre, Muller, Raina, IEEE TC 53(8), 2004), unless the
        # scale is below 1e-30, where what is left over underflows.
        quotient = x * inverse
        quotient = tl.fma(tl.fma(quotient, negated, x), inverse, quotient)
        columns = _columns(TILE, p)
        if TILE.parts[p].padded:
            tl.store(codes + columns, _codes(quotient), mask=columns < TILE.parts[p].end)
        else:
            tl.store(codes + columns, _codes(quotient))


@triton.jit
def _store_dynamic(values, codes, scale, QMAX: tl.constexpr, TILE: tl.constexpr):
    amax = _row_amax(values, TILE)
    # The rotation's 1/√block is left out of the values and put into the scale.
    true_amax = amax * TILE.norm
    small = true_amax < SMALLEST
    tl.store(scale, tl.where(small, 0.0, tl.div_rn(true_amax, 1.0 * QMAX)))
    # Rounded twice, as torch divides a number by a tensor.
    factor = tl.where(small, 0.0, tl.div_rn(1.0, amax) * QMAX)
    finite = amax.to(tl.int32, bitcast=True) < INFINITY
    for p in tl.static_range(len(TILE.parts)):
        columns = _columns(TILE, p)
        rounded = _codes(values[p] * factor)
        # Two stores, so that no value has to be checked for being finite.
        if TILE.parts[p].padded:
            inside = columns < TILE.parts[p].end
            tl.store(codes + columns, rounded, mask=inside & finite)
            tl.store(codes + columns, tl.zeros_like(rounded), mask=inside & (finite == 0))
        else:
            tl.store(codes + columns, rounded, mask=finite)
            tl.store(codes + columns, tl.zeros_like(rounded), mask=finite == 0)
