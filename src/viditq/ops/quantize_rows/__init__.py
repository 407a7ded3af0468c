"""``quantize_rows``: smooth, rotate and quantize activations, one scale per token."""

import torch
from torch import Tensor

from viditq.ops.quantize_rows import reference
from viditq.ops.quantize_rows.reference import balance_rows

__all__ = ["balance_rows", "quantize_rows"]


@torch.library.custom_op("viditq::quantize_rows", mutates_args=())
def _quantize_rows(
    x: Tensor, smooth: Tensor | None, hadamard: int, bits: int
) -> tuple[Tensor, Tensor]:
    # Codes are contiguous whatever the layout of x, as the shape function below promises.
    return reference.quantize_rows(x.contiguous(), smooth, hadamard, bits)


@_quantize_rows.register_fake
def _(
    x: Tensor,
    smooth: Tensor | None,  # noqa: ARG001
    hadamard: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


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
