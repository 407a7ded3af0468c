"""``round_columns`` with a block of columns in registers: one warp to four rows of the layer.

Each step takes the target of one column, subtracts what the columns before it moved, a sum over the
block in which those to come are still zero, and rounds. Programs do not meet: rows are independent.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import dense, launch

__all__ = ["kernel", "round_columns"]

ROWS = 4
"""Rows of the layer in a program."""

_NEAREST = tl.constexpr(12582912.0)
"""1.5 · 2²³: adding it rounds to an integer, ties to even."""


# Compiled once for all sizes: nothing here gains by knowing them.
@triton.jit(
    do_not_specialize=["size", "N", "factor_row", "factor_column", "scale_row"],
)
def kernel(
    target, factor, scale, old, codes, moved,
    size, N, factor_row, factor_column, scale_row,
    LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    inside = n < N
    before = tl.zeros([BLOCK, ROWS], tl.float32)
    # A column is loaded while the two before it are rounded: a step is shorter than the way.
    column, own, r, s, start = _loaded(
        target + n, factor, factor_row, factor_column, scale + n, scale_row, old, n, N, i, 0, inside
    )
    following = _loaded(
        target + n, factor, factor_row, factor_column, scale + n, scale_row, old, n, N, i,
        tl.minimum(1, size - 1), inside,
    )  # fmt: skip
    for j in range(size):
        after = _loaded(
            target + n, factor, factor_row, factor_column, scale + n, scale_row, old, n, N, i,
            tl.minimum(j + 2, size - 1), inside,
        )  # fmt: skip
        r -= tl.sum(column[:, None] * before, axis=0)
        if old is None:
            code = _rounded(tl.div_rn(r, s), LOW, HIGH)
            shift = tl.div_rn(r - s * code, own)
        else:
            code = _rounded(tl.div_rn(r, own * s) + start, LOW, HIGH)
            shift = s * (code - start)
        tl.store(codes + j * N + n, code, mask=inside)
        tl.store(moved + j * N + n, shift, mask=inside)
        before = tl.where(i[:, None] == j, shift[None, :], before)
        column, own, r, s, start = following
        following = after


@triton.jit
def _loaded(target, factor, factor_row, factor_column, scale, scale_row, old, n, N, i, j, inside):
    """Of column ``j``: the factor above the diagonal and on it, target, scale and old codes."""
    factor += j * factor_column
    column = tl.load(factor + i * factor_row, mask=i < j, other=0.0)
    own = tl.load(factor + j * factor_row)
    r = tl.load(target + j * N, mask=inside, other=0.0)
    s = tl.load(scale + j * scale_row, mask=inside, other=1.0)
    start = r
    if old is not None:
        start = tl.load(old + j * N + n, mask=inside, other=0.0)
    return column, own, r, s, start


@triton.jit
def _rounded(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    x = tl.minimum(tl.maximum(x, LOW), HIGH)
    return (x + _NEAREST) - _NEAREST


def round_columns(
    target: Tensor, factor: Tensor, scale: Tensor, old: Tensor | None, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """See :func:`viditq.ops.round_columns`."""
    target = target.contiguous()
    codes, moved = torch.empty_like(target), torch.empty_like(target)
    size, rows = target.shape
    if not target.numel():
        return codes, moved
    scale = dense(scale)
    launch(
        kernel,
        triton.cdiv(rows, ROWS),
        (target, factor, scale, None if old is None else old.contiguous(), codes, moved),
        (size, rows, *factor.stride(), scale.stride(0) if scale.ndim == 2 else 0),
        (low, high, triton.next_power_of_2(size), ROWS),
        {"num_warps": 1},
    )
    return codes, moved
