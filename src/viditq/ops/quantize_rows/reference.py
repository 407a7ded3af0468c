"""Per-token quantization with balancing in the same pass: the definition.

``x' = ((x - center) · 1/smooth) H``, ``scale = amax|x'| / qmax`` per row, ``code = round(x' ·
qmax/amax)`` with ties to even (ViDiT-Q, arXiv 2406.02540, Eq. 2, symmetric). The two quotients are
taken once per channel and per row, as kernels do. A row of zeros, or of values below 1e-30, has
scale 0 and codes 0; one that holds inf or NaN has a non-finite scale and codes 0, so that it comes
out as NaN.

With a static scale, one for every token, timestep and CFG branch, fixed at calibration, ``code =
round(x' / scale)``, saturated; inf saturates as well, and NaN has code 0.
"""

import torch
from torch import Tensor

from viditq.ops.hadamard.reference import block_hadamard

__all__ = ["SMALLEST", "balance_rows", "quantize_rows"]

SMALLEST = 1e-30
"""A row whose largest magnitude is below counts as zeros: a reciprocal must not overflow."""


def balance_rows(
    x: Tensor, smooth: Tensor | None, hadamard: int, center: Tensor | None = None
) -> Tensor:
    """``((x - center) · 1/smooth) H``: (M, K) any float -> (M, K) fp32 (fp64 stays fp64)."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    if center is not None:
        x = x - center
    if smooth is not None:
        x = x * smooth.reciprocal()
    return block_hadamard(x, hadamard)


def quantize_rows(
    x: Tensor,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8 and scale (M,) fp32, (0,) if one is given."""
    qmax = 2 ** (bits - 1) - 1
    balanced = balance_rows(x, smooth, hadamard, center)
    if scale is not None:
        return _static_codes(balanced, scale, qmax), balanced.new_empty(0, dtype=torch.float32)
    if balanced.numel() == 0:
        scale = balanced.new_zeros(balanced.shape[0], dtype=torch.float32)
        return balanced.to(torch.int8), scale
    amax = balanced.abs().amax(-1).to(torch.float32)
    amax = torch.where(amax < SMALLEST, 0.0, amax)
    codes = (balanced * (qmax / amax)[:, None]).round().clamp(-qmax, qmax)
    codes = codes.where((amax > 0)[:, None], 0.0).nan_to_num(nan=0.0)
    return codes.to(torch.int8, memory_format=torch.contiguous_format), amax / qmax


def _static_codes(x: Tensor, scale: Tensor, qmax: int) -> Tensor:
    steps = x.to(torch.float32) / scale.clamp_min(torch.finfo(torch.float32).tiny)
    codes = steps.round().clamp(-qmax, qmax).nan_to_num(nan=0.0)
    return codes.to(torch.int8, memory_format=torch.contiguous_format)
