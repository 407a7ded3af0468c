"""``int8_linear``: 8-bit activations times 8-bit weights."""

import torch
from torch import Tensor

from viditq.ops.int8_linear import reference, signature
from viditq.ops.registration import register_op

__all__ = ["int8_linear"]

_int8_linear = register_op(
    "int8_linear" + signature.ARGUMENTS,
    reference.int8_linear,
    signature.result,
    kernels="viditq.ops.int8_linear",
)


def int8_linear(
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
    """Linear layer on integer codes.

    Args:
        x: (M, K) int8 codes of the activations.
        x_scale: (M,) fp32 per token, or () fp32 for one static scale.
        weight: (N, K) int8 codes of the weight.
        scale: (N,) fp32 per output channel.
        bias: (N,) any float, or ``None``.
        dtype: of the result.
        gate: (B, N), any float, B dividing M: rows ``i·M/B … (i+1)·M/B`` of the layer's output are
            multiplied by ``gate[i]``.
        residual: (M, N), any float, added last.

    Returns:
        (M, N) ``dtype``.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x (M, K) and weight (N, K) do not fit: {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    signature.check(x, weight, gate, residual)
    return _int8_linear(x, x_scale, weight, scale, bias, gate, residual, dtype)
