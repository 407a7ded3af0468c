"""``quantize_tensor``: static quantization with one given scale."""

import torch
from torch import Tensor

from viditq.ops.quantize_tensor import reference
from viditq.ops.registration import register_op

__all__ = ["quantize_tensor"]


def _shape(x: Tensor, scale: Tensor, bits: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=torch.int8)


_quantize_tensor = register_op(
    "quantize_tensor(Tensor x, Tensor scale, int bits) -> Tensor",
    reference.quantize_tensor,
    _shape,
)


def quantize_tensor(x: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Quantize ``x`` with one static scale.

    Args:
        x: (M, K), bf16, fp16 or fp32.
        scale: () fp32.
        bits: 2 … 8.

    Returns:
        codes (M, K) int8; what exceeds the calibrated range saturates.
    """
    if scale.numel() != 1:
        raise ValueError(f"scale must hold one number, not {tuple(scale.shape)}")
    return _quantize_tensor(x, scale, bits)
