"""``fp8_linear``: 8-bit floating-point activations times 8-bit floating-point weights.

A peer with the interface of :func:`viditq.ops.int8_linear`, to compare integers with; no format
stores such weights.
"""

import torch
from torch import Tensor

from viditq.ops.fp8_linear import cuda, reference
from viditq.ops.fp8_linear.reference import FP8, quantize_rows_fp8
from viditq.ops.int8_linear import signature
from viditq.ops.registration import register_op

__all__ = ["fp8_linear", "quantize_rows_fp8"]

_fp8_linear = register_op(
    "fp8_linear" + signature.ARGUMENTS,
    reference.fp8_linear,
    signature.result,
    cuda=cuda.fp8_linear,
)


def fp8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layer on fp8 codes.

    Args:
        x: (M, K) float8_e4m3fn codes of the activations, from :func:`quantize_rows_fp8`.
        x_scale: (M,) fp32 per token.
        weight: (N, K) float8_e4m3fn codes of the weight.
        scale: (N,) fp32 per output channel.
        bias: (N,) any float, or ``None``.
        dtype: of the result; only bf16 is fast.
        gate: (B, N), any float, B dividing M: rows ``i·M/B … (i+1)·M/B`` of the layer's output are
            multiplied by ``gate[i]``.
        residual: (M, N), any float, added last.

    Returns:
        (M, N) ``dtype``.
    """
    if x.dtype != FP8 or weight.dtype != FP8:
        raise ValueError(f"x and weight must be {FP8}, not {x.dtype} and {weight.dtype}")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x (M, K) and weight (N, K) do not fit: {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    for name, scales, wanted in (("x_scale", x_scale, len(x)), ("scale", scale, len(weight))):
        if scales.shape != (wanted,):
            raise ValueError(f"{name} must have shape ({wanted},), not {tuple(scales.shape)}")
    signature.check(x, weight, gate, residual)
    return _fp8_linear(x, x_scale, weight, scale, bias, gate, residual, dtype)
