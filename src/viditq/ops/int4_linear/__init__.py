"""``int4_linear``: 8-bit activations times packed 4-bit weights."""

import torch
from torch import Tensor

from viditq.ops.int4_linear import reference
from viditq.ops.int8_linear import signature
from viditq.ops.registration import register_op

__all__ = ["int4_linear"]

_int4_linear = register_op(
    "int4_linear" + signature.ARGUMENTS,
    reference.int4_linear,
    signature.result,
    kernels="viditq.ops.int4_linear",
)


def int4_linear(
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
    """Linear layer on integer codes with two weights per byte.

    Args:
        x: (M, K) int8 codes of the activations.
        x_scale: (M,) fp32 per token, or () fp32 for one static scale.
        weight: (N, ⌈K/2⌉) uint8, as made by :func:`viditq.ops.pack_int4`.
        scale: (N,) fp32 per output channel.
        bias: (N,) any float, or ``None``.
        dtype: of the result.
        gate: (B, N), any float, B dividing M: rows ``i·M/B … (i+1)·M/B`` of the layer's output are
            multiplied by ``gate[i]``.
        residual: (M, N), any float, added last.

    Returns:
        (M, N) ``dtype``.
    """
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != -(-x.shape[1] // 2):
        raise ValueError(
            f"x (M, K) and packed weight (N, ⌈K/2⌉) do not fit: {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    signature.check(x, weight, gate, residual)
    return _int4_linear(x, x_scale, weight, scale, bias, gate, residual, dtype)
