"""Attention as torch has it: the definition, and what runs where no kernel of ours is faster."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, S, H, D), (B, T, H, D) twice -> (B, S, H, D); see :func:`viditq.ops.attention`."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)[:, None, None]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).contiguous()
