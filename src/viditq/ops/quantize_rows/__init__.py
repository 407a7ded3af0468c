"""``quantize_rows``: smooth, rotate and quantize activations, one scale per token."""

import torch
from torch import Tensor

from viditq.ops.quantize_rows import reference
from viditq.ops.quantize_rows.reference import balance_rows
from viditq.ops.registration import register_op

__all__ = ["balance_rows", "quantize_rows"]


def _shape(
    x: Tensor,
    smooth: Tensor | None,  # noqa: ARG001
    hadamard: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


_quantize_rows = register_op(
    "quantize_rows(Tensor x, Tensor? smooth, int hadamard, int bits) -> (Tensor, Tensor)",
    reference.quantize_rows,
    _shape,
    kernels="viditq.ops.quantize_rows",
)


def quantize_rows(
    x: Tensor, smooth: Tensor | None = None, hadamard: int = 0, bits: int = 8
) -> tuple[Tensor, Tensor]:
    """Quantize each row of ``x`` with a scale of its own.

    Args:
        x: (M, K), bf16, fp16 or fp32.
        smooth: (K,) fp32 per-channel vector that ``x`` is divided by, or ``None``.
        hadamard: block size of the rotation, a power of two that divides K; 0 for none.
        bits: 2 … 8; codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1].

    Returns:
        codes (M, K) int8 and scale (M,) fp32, with ``x' ≈ scale · code``.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point matrix, not {x.dtype} {tuple(x.shape)}")
    if smooth is not None and smooth.shape != x.shape[1:]:
        raise ValueError(f"smooth must have shape {tuple(x.shape[1:])}, not {tuple(smooth.shape)}")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 … 8, not {bits}")
    return _quantize_rows(x, smooth, hadamard, bits)
