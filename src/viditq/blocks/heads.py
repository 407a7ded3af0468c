"""Queries and keys on their way from the product to the attention, in one op.

The norm, of the mean square or of the variance, of each head or across all of them, the rotation of
pairs of neighbours and the place of a stream behind another are one pass over either. A norm of
another class or form, and one with something on it, is called as a module first; the rest is one op
even then. What is left as the product made it, and alone, is not touched at all.
"""

from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from viditq.blocks.products import is_untouched
from viditq.ops import Stream, norm_rotate

__all__ = ["Rotation", "by_pair", "stream", "turned"]

Rotation = tuple[Tensor, Tensor]
"""cos and sin of the angle of each pair, (B, S, H, D/2) each, or 1 where they are all the same."""


def by_pair(rotary: tuple[Tensor, Tensor] | None, start: int = 0, end: int | None = None) -> Any:
    """cos and sin (S, D), each number twice, of the tokens from ``start`` to ``end``.

    Returns:
        as a rotation: (1, end - start, 1, D/2) each; of none, none.
    """
    if rotary is None:
        return None
    cos, sin = rotary
    return cos[None, start:end, None, ::2], sin[None, start:end, None, ::2]


def stream(
    x: Tensor, norm: Any, heads: int, rotation: Rotation | None = None, *, across: bool = False
) -> Stream:
    """Queries or keys ``x`` (B, S, H·D), to be normalized and rotated.

    Args:
        x: what a layer made.
        norm: of each head, or ``across`` all of them; a module, or ``None``.
        heads: H.
        rotation: that follows, or ``None``.
        across: see ``norm``.
    """
    apart = x.unflatten(-1, (heads, -1))
    if rotation is not None and rotation[0].device != x.device:
        cos, sin = rotation
        rotation = cos.to(x.device), sin.to(x.device)
    if norm is None:
        return Stream(apart, rotation=rotation)
    if _is_plain(norm, x.shape[-1] if across else apart.shape[-1]):
        centred = isinstance(norm, nn.LayerNorm)
        return Stream(apart, norm.weight, norm.eps, rotation, getattr(norm, "bias", None), centred)
    y = norm(x).unflatten(-1, (heads, -1)) if across else norm(apart)
    return Stream(y.type_as(x), rotation=rotation)


def turned(first: Stream, second: Stream | None = None, *, across: bool = False) -> Tensor:
    """The queries or keys of one stream, or of two, one behind the other, (B, S + T, H, D)."""
    given = [first] if second is None else [first, second]
    if any(each.eps is not None or each.rotation is not None for each in given):
        return norm_rotate(first, second, across=across)
    return first.x if second is None else torch.cat([first.x, second.x], 1)


def _is_plain(norm: Any, features: int) -> bool:
    """Whether ``norm`` is one of so many features that the op computes, and nothing sits on it."""
    if is_untouched(norm, nn.RMSNorm) or is_untouched(norm, nn.LayerNorm):
        return norm.normalized_shape == (features,) and norm.eps is not None
    return is_untouched(norm, RMSNorm) and norm.dim == (features,)
