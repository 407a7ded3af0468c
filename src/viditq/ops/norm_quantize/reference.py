"""Normalization, modulation, balancing and quantization in one pass: the definition.

``y = norm(x) · weight + bias``, ``z = y · (1 + gain) + shift`` (the AdaLN modulation of DiT, arXiv
2212.09748), then :mod:`viditq.ops.quantize_rows`. Everything is computed in fp32; nothing is
rounded to the input's dtype on the way.
"""

import torch
from torch import Tensor

from viditq.ops.quantize_rows.reference import quantize_rows

__all__ = ["norm_quantize", "normalize_rows"]


def normalize_rows(
    x: Tensor,
    kind: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """(M, K) any float -> (M, K) fp32 (fp64 stays fp64)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(dtype)
    if kind == "layer":
        x = x - x.mean(1, keepdim=True)
    x = x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        x = x * weight.to(dtype)
    if bias is not None:
        x = x + bias.to(dtype)
    if gain is not None:
        x = x * (1 + _per_row(gain, len(x)).to(dtype))
    if shift is not None:
        x = x + _per_row(shift, len(x)).to(dtype)
    return x


def _per_row(vectors: Tensor, rows: int) -> Tensor:
    """(B, K) -> (M, K), each vector for M/B consecutive rows."""
    return vectors.repeat_interleave(rows // max(1, len(vectors)), dim=0)


def norm_quantize(
    x: Tensor,
    kind: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8 and scale (M,) fp32, (0,) if one is given."""
    normed = normalize_rows(x, kind, eps, weight, bias, gain, shift)
    return quantize_rows(normed, smooth, hadamard, bits, scale, center)
