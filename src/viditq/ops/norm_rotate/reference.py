"""Norm of queries or keys, rotary embedding and concatenation in one pass: the definition.

``y = x / rms(x) · weight + bias``, with the mean square over a head or across all of them; if the
norm is a LayerNorm, the mean is taken off ``x`` before. Then each pair of neighbours of a head is
turned by its angle (RoFormer, arXiv 2104.09864, section 3.2.2):
``(y₀ cos - y₁ sin, y₁ cos + y₀ sin)``. Everything is computed in fp32, or fp64 if the input is, and
rounded to the input's dtype once. (diffusers rounds to it after the norm, and before and after the
weight, too.)
"""

from typing import Any

import torch
from torch import Tensor

from viditq.ops.norm_rotate.signature import Part, parts

__all__ = ["norm_rotate"]


def norm_rotate(*arguments: Any) -> Tensor:
    """(B, S, H, D) and (B, T, H, D) -> (B, S + T, H, D); see :func:`viditq.ops.norm_rotate`."""
    given, across = parts(arguments)
    turned = [_turned(part, (2, 3) if across else (3,)) for part in given]
    return turned[0] if len(turned) == 1 else torch.cat(turned, 1)


def _turned(part: Part, dims: tuple[int, ...]) -> Tensor:
    """(B, S, H, D) -> the same, dense; the norm is over ``dims``."""
    x, weight, bias, eps, centred, cos, sin = part
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(dtype)
    if centred:
        y = y - y.mean(dims, keepdim=True)
    if eps is not None:
        y = y * (y.square().mean(dims, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * weight.to(dtype).view(-1, x.shape[-1])
    if bias is not None:
        y = y + bias.to(dtype).view(-1, x.shape[-1])
    if cos is not None and sin is not None:
        cos, sin = cos.to(dtype), sin.to(dtype)
        even, odd = y.unflatten(-1, (-1, 2)).unbind(-1)
        y = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return y.to(x.dtype, memory_format=torch.contiguous_format, copy=True)
