"""``round_columns``: the sequential part of second-order rounding, a block of columns at a time.

What GPTQ and coordinate descent over codes have in common: a column is rounded, and what that moved
changes the targets of the columns behind it. No product of matrices can do it, and column by column
it is some launches for each. Weights are held as (K, N), so that a column of the layer is
contiguous.
"""

import torch
from torch import Tensor

from viditq.ops.registration import register_op
from viditq.ops.round_columns import reference

__all__ = ["round_columns"]


def _shape(
    target: Tensor,
    factor: Tensor,  # noqa: ARG001
    scale: Tensor,  # noqa: ARG001
    old: Tensor | None,  # noqa: ARG001
    low: int,  # noqa: ARG001
    high: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(target), torch.empty_like(target)


_round_columns = register_op(
    "round_columns(Tensor target, Tensor factor, Tensor scale, Tensor? old, int low, int high) "
    "-> (Tensor, Tensor)",
    reference.round_columns,
    _shape,
    kernels="viditq.ops.round_columns",
)


def round_columns(
    target: Tensor,
    factor: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    old: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Round the columns of a weight in turn, each minding those before it.

    With ``r_j = target_j - Σ_{i<j} factor_ij · moved_i``, a code is ``round(r_j / s)`` and has
    moved ``(r_j - s · code) / factor_jj``: GPTQ (arXiv 2210.17323), with the upper Cholesky factor
    of the inverse moment. With ``old`` codes it is ``round(r_j / (factor_jj · s) + old_j)`` and has
    moved ``s · (code - old_j)``: coordinate descent, with the moment and the gradient as target.

    Args:
        target: (B, N) fp32, a block of B columns of the layer.
        factor: (B, B) fp32; what is below the diagonal is not looked at.
        scale: (N,) or (B, N) fp32.
        low, high: the smallest and the largest code.
        old: (B, N) fp32 codes to start from.

    Returns:
        codes (B, N) fp32 and what they moved (B, N) fp32.
    """
    size, rows = target.shape
    if factor.shape != (size, size):
        raise ValueError(f"factor must be ({size}, {size}), not {tuple(factor.shape)}")
    if scale.shape not in ((rows,), (size, rows)):
        raise ValueError(f"scale must be ({rows},) or ({size}, {rows}), not {tuple(scale.shape)}")
    if old is not None and old.shape != target.shape:
        raise ValueError(f"old must be {tuple(target.shape)}, not {tuple(old.shape)}")
    return _round_columns(target, factor, scale, old, low, high)
