"""Attention inside fused blocks: torch's, or ours where there is a kernel that is faster."""

import torch.nn.functional as F
from torch import Tensor

from viditq.ops import attention, gains_by_kernel

__all__ = ["Heads", "attend"]

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, (B, S, H, D) each, or another number of tokens for keys and values."""


def attend(qkv: Heads, bias: Tensor | None = None) -> Tensor:
    """Attention, (B, S, H·D); ``bias`` (B, 1, 1 or S, T) is added to its scores."""
    if gains_by_kernel(*qkv[:2]):
        if bias is None:
            return attention(*qkv).flatten(2)
        if bias.shape[1:3] == (1, 1) and bias.is_floating_point():
            return attention(*qkv, bias[:, 0, 0]).flatten(2)
    q, k, v = (each.transpose(1, 2) for each in qkv)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.transpose(1, 2).flatten(2)
