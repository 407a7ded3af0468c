"""``attention``: softmax(q kᵀ / √D + bias) v for every head, in floating point."""

import torch
from torch import Tensor

from viditq.ops.attention import reference
from viditq.ops.registration import register_op

__all__ = ["attention", "gains_by_kernel"]

HEAD = 72
"""Features of a head for which there is a kernel: PixArt's and Latte's. Torch's kernels compute
these as if they had 128."""

LEAST_QUERIES, LEAST_KEYS = 1024, 128
"""Below these a program of it has too little to do before it ends."""


def gains_by_kernel(q: Tensor, k: Tensor) -> bool:
    """Whether queries (B, S, H, D) and keys are such that :func:`attention` may be faster than
    torch's, on CUDA; it is on Hopper, and is torch's on other chips."""
    return (
        q.is_cuda
        and q.shape[3] == HEAD
        and q.shape[1] >= LEAST_QUERIES
        and k.shape[1] >= LEAST_KEYS
        and q.dtype in (torch.bfloat16, torch.float16)
    )


def _shape(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape)


_attention = register_op(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? bias) -> Tensor",
    reference.attention,
    _shape,
    kernels="viditq.ops.attention",
)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """What every query reads from the values, weighted by how its key matches (arXiv 1706.03762).

    Args:
        q: (B, S, H, D), any float; heads of a token may lie anywhere, as views of a joint product.
        k: (B, T, H, D), likewise.
        v: (B, T, H, D), likewise.
        bias: (B, T), any float, added to the scores of a sample's keys; ``-inf`` masks one.

    Returns:
        (B, S, H, D), dense, of the dtype of ``q``.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or k.shape[1] == 0:
        raise ValueError(
            "q must be (B, S, H, D) and k and v (B, T, H, D) with a key at least, not "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must have the same batch, heads and width"
        )
    if not q.is_floating_point() or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k and v must have one floating dtype, not {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if bias is not None and (bias.shape != k.shape[:2] or not bias.is_floating_point()):
        raise ValueError(
            f"bias must be floating-point {tuple(k.shape[:2])}, "
            f"not {bias.dtype} {tuple(bias.shape)}"
        )
    return _attention(q, k, v, bias)
