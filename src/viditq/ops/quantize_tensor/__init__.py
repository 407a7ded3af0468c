"""``quantize_tensor``: static quantization with one given scale."""

import torch
from torch import Tensor

from viditq.ops.quantize_tensor import reference

__all__ = ["quantize_tensor"]


@torch.library.custom_op("viditq::quantize_tensor", mutates_args=())
def _quantize_tensor(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    # Contiguous whatever the layout of x, as in quantize_rows.
    return reference.quantize_tensor(x.contiguous(), scale, bits)


@_quantize_tensor.register_fake
def _(x: Tensor, scale: Tensor, bits: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=torch.int8)


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
