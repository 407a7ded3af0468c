"""Norm of queries or keys, rotary embedding and concatenation in one pass: the definition.

``y = x / rms(x) · weight``, with the mean square over a head or across all of them, then each pair
of neighbours of a head turned by its angle (RoFormer, arXiv 2104.09864, section 3.2.2):
``(y₀ cos - y₁ sin, y₁ cos + y₀ sin)``. Everything is computed in fp32, or fp64 if the input is, and
rounded to the input's dtype once. (diffusers rounds to it after the norm, and before and after the
weight, too.)
"""

import torch
from torch import Tensor

__all__ = ["norm_rotate"]


def norm_rotate(
    x: Tensor,
    weight: Tensor | None,
    eps: float | None,
    cos: Tensor | None,
    sin: Tensor | None,
    across: bool,
    second: Tensor | None,
    second_weight: Tensor | None,
    second_eps: float | None,
    second_cos: Tensor | None,
    second_sin: Tensor | None,
) -> Tensor:
    """(B, S, H, D) and (B, T, H, D) -> (B, S + T, H, D); see :func:`viditq.ops.norm_rotate`."""
    first = _stream(x, weight, eps, cos, sin, across)
    if second is None:
        return first
    rest = _stream(second, second_weight, second_eps, second_cos, second_sin, across)
    return torch.cat([first, rest], 1)


def _stream(
    x: Tensor,
    weight: Tensor | None,
    eps: float | None,
    cos: Tensor | None,
    sin: Tensor | None,
    across: bool,
) -> Tensor:
    """(B, S, H, D) -> the same, dense."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(dtype)
    if eps is not None:
        y = y * (y.square().mean((2, 3) if across else 3, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * weight.to(dtype).view(-1, x.shape[-1])
    if cos is not None and sin is not None:
        cos, sin = cos.to(dtype), sin.to(dtype)
        even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
        y = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return y.to(x.dtype, memory_format=torch.contiguous_format, copy=True)
