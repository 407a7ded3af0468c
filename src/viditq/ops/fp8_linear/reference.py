"""Row-wise scaled fp8 (e4m3) matrix product, and the quantization for it: the definition.

``y = (x_code · w_codeᵀ) · x_scale · scale + bias``, then gate and residual, as in
:mod:`viditq.ops.int8_linear`; codes are floats with 4 significant bits. The sum is taken in fp32.
"""

import torch
from torch import Tensor

from viditq.ops.int8_linear.reference import finish

__all__ = ["FP8", "fp8_linear", "quantize_rows_fp8"]

FP8 = torch.float8_e4m3fn


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) float8_e4m3fn and scale (M,) fp32, ``amax / 448`` of each row.

    A row of zeros has scale 0 and codes 0; one that holds inf or NaN comes out of a product as NaN.
    """
    x = x.to(torch.float32)
    if x.numel() == 0:
        return x.to(FP8), x.new_zeros(len(x))
    scale = x.abs().amax(1) / torch.finfo(FP8).max
    return (x / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).to(FP8), scale


def fp8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.fp8_linear` -> (M, N) ``dtype``."""
    total = x.to(torch.float32) @ weight.to(torch.float32).T
    return finish(total, x_scale, scale, bias, gate, residual, dtype)
