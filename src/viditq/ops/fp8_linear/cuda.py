"""``fp8_linear`` on CUDA: torch's own row-wise scaled product, gate and residual after it.

The product and its bias are rounded to bf16 before a gate or residual follows. Sums are carried as
fast as the chip can (``use_fast_accum``), with fewer bits than fp32 on Hopper.

Declined, and left to the reference: chips without fp8 (before sm_89), widths that are no multiples
of 16, and results in other dtypes than bf16, which torch's product does not have everywhere.
"""

from functools import cache

import torch
from torch import Tensor

from viditq.ops.fp8_linear import reference

__all__ = ["fp8_linear", "takes"]

FP8_TENSOR_CORES = (8, 9)
ALIGNMENT = 16


@cache
def _has_fp8(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FP8_TENSOR_CORES


def takes(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's product computes (M, K) times (N, K)."""
    aligned = all(size % ALIGNMENT == 0 for size in weight.shape)
    some = x.numel() > 0 and weight.numel() > 0
    return aligned and some and dtype == torch.bfloat16 and _has_fp8(x.device)


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
    if not takes(x, weight, dtype):
        return reference.fp8_linear(x, x_scale, weight, scale, bias, gate, residual, dtype)
    y = torch._scaled_mm(
        x.contiguous(),
        weight.contiguous().T,
        x_scale.contiguous()[:, None],
        scale.contiguous()[None],
        bias=None if bias is None else bias.to(dtype),
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return y if gate is None and residual is None else _gated(y, gate, residual).to(dtype)


def _gated(y: Tensor, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    """``gate · y + residual``: y (M, N), gate (B, N), residual (M, N) -> (M, N)."""
    if gate is None:
        assert residual is not None
        return y + residual
    by_batch = y.unflatten(0, (len(gate), -1))
    if residual is None:
        return (by_batch * gate[:, None]).flatten(0, 1)
    rows = residual.unflatten(0, (len(gate), -1))
    return torch.addcmul(rows, by_batch, gate[:, None]).flatten(0, 1)
