"""``quantize_rows`` in one pass over the input; how, is in :mod:`viditq.ops.rows`."""

import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import dense, launch
from viditq.ops.quantize_rows import reference
from viditq.ops.quantize_rows.signature import empty_result
from viditq.ops.rows import (
    centered_reciprocals,
    floats,
    load_row,
    programs,
    static_steps,
    store_quantized,
    takes,
)
from viditq.ops.tiling import tiling

__all__ = ["kernel", "quantize_rows"]


@triton.jit(do_not_specialize=["M"])
def kernel(
    x, smooth, center, static, codes, scale, stride, M, QMAX: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    following = load_row(x + row * stride, True, TILE)
    factors, offsets = centered_reciprocals(smooth, center, TILE)
    steps = static_steps(static, QMAX, TILE)
    for i in tl.range(tl.program_id(0), M, tl.num_programs(0), num_stages=1):
        row, after = tl.cast(i, tl.int64), i + tl.num_programs(0)
        loaded = floats(following, TILE)
        following = load_row(x + after.to(tl.int64) * stride, after < M, TILE)
        values = ()
        for p in tl.static_range(len(TILE.parts)):
            if center is None:
                values += (loaded[p] * factors[p],)
            else:
                values += (tl.fma(loaded[p], factors[p], offsets[p]),)
        store_quantized(values, codes + row * TILE.features, scale + row, steps, QMAX, TILE)


def quantize_rows(
    x: Tensor,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8 and scale (M,) fp32, (0,) if one is given."""
    rows, features = x.shape
    if not takes(x, features, hadamard):
        return reference.quantize_rows(x, smooth, hadamard, bits, scale, center)
    x, tile = dense(x), tiling(features, hadamard, vectors=1 if center is None else 2)
    smooth, center = (v if v is None else dense(v) for v in (smooth, center))
    codes, own = empty_result(x, features, scale)
    launch(
        kernel,
        programs(x, tile),
        (x, smooth, center, scale, codes, own),
        (x.stride(0), rows),
        (2 ** (bits - 1) - 1, tile),
        tile.options,
    )
    return codes, own
