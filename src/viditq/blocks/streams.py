"""Parts of blocks in which two streams of tokens, a text's and an image's or video's, meet.

Where each stream has layers of its own, the two meet in the attention; where they share layers,
they are one sequence in front of these, made of codes and not of floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from viditq.blocks.attention import Heads
from viditq.blocks.heads import Rotation, stream, turned
from viditq.blocks.inputs import Input, over_tokens
from viditq.blocks.joint import multiply
from viditq.blocks.products import is_untouched, read, takes_codes
from viditq.nn import QuantLinear
from viditq.ops import Stream

__all__ = [
    "OneAfterAnother",
    "Projected",
    "clipped",
    "dispatch",
    "drops_nothing",
    "finish_each",
    "heads",
    "in_two_parts",
    "is_untouched_attention",
    "is_untouched_norm",
    "modulation",
    "own_heads",
    "text_heads",
    "together",
]

Projected = tuple[Stream, Stream, Tensor]
"""The same of one stream, with what queries and keys are still to go through."""

LARGEST_HALF = 65504
"""What diffusers clips fp16 to."""


@dataclass
class OneAfterAnother:
    """Inputs (B, S_i, K) as one of ΣS_i tokens."""

    parts: Sequence[Input]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def tokens(self) -> torch.Size:
        batch = self.parts[0].tokens[0]
        return torch.Size((batch, sum(part.tokens[1] for part in self.parts)))

    def values(self) -> Tensor:
        return torch.cat([part.values() for part in self.parts], 1)

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        codes, scales = zip(*(part.codes(layer) for part in self.parts), strict=True)
        return self._joined(codes), self._joined(scales) if scales[0].ndim else scales[0]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        by_sample = [part.unflatten(0, (self.tokens[0], -1)) for part in parts]
        return torch.cat(by_sample, 1).flatten(0, 1)


def finish_each(
    x: Input, layer: nn.Module, residuals: Sequence[Tensor], gates: Sequence[Tensor]
) -> list[Tensor]:
    """``gate · layer(x) + residual`` of each stream, (B, S_i, N), one after the other in ``x``.

    Args:
        x: (B, ΣS_i, K).
        layer: that they share.
        residuals: (B, S_i, N) each.
        gates: (B, N) each.
    """
    lengths = [residual.shape[1] for residual in residuals]
    if not takes_codes(layer):
        parts = zip(layer(x.values()).split(lengths, 1), residuals, gates, strict=True)
        return [(over_tokens(gate) * y + residual).to(x.dtype) for y, residual, gate in parts]
    codes, scale = x.codes(layer)
    scales = _split(scale, x, lengths) if scale.ndim else [scale] * len(lengths)
    parts = zip(_split(codes, x, lengths), scales, residuals, gates, strict=True)
    return [
        multiply(part, own, [layer], x.dtype, gate=gate, residual=residual.flatten(0, 1)).view_as(
            residual
        )
        for part, own, residual, gate in parts
    ]


def _split(rows: Tensor, x: Input, lengths: Sequence[int]) -> list[Tensor]:
    """(B·ΣS_i, …) -> (B·S_i, …) each."""
    return [part.flatten(0, 1) for part in rows.unflatten(0, x.tokens).split(lengths, 1)]


def modulation(norm: Any, temb: Tensor) -> tuple[Tensor, ...]:
    """Shift, gain and gate, (B, C) each, of every sublayer that ``norm`` knows of."""
    y = norm.linear(norm.silu(temb))
    return y.split(norm.norm.normalized_shape[0], 1)


def own_heads(attn: Any, x: Input, rotation: Rotation | None = None) -> Projected:
    """Of ``x`` (B, S, C), the stream that has the usual names in ``attn``."""
    projected = read(x, [attn.to_q, attn.to_k, attn.to_v])
    return heads(attn, projected, attn.norm_q, attn.norm_k, rotation)


def text_heads(attn: Any, x: Input, rotation: Rotation | None = None) -> Projected:
    """Of ``x`` (B, S, C), the stream that was added."""
    projected = read(x, [attn.add_q_proj, attn.add_k_proj, attn.add_v_proj])
    return heads(attn, projected, attn.norm_added_q, attn.norm_added_k, rotation)


def heads(
    attn: Any,
    projected: Sequence[Tensor],
    norm_q: Any,
    norm_k: Any,
    rotation: Rotation | None = None,
) -> Projected:
    """q, k and v, (B, S, H·D) each, by head; norms are of a head, or ``None``."""
    q, k, v = projected
    return (
        stream(q, norm_q, attn.heads, rotation),
        stream(k, norm_k, attn.heads, rotation),
        v.unflatten(-1, (attn.heads, -1)),
    )


def together(first: Projected, second: Projected | None = None) -> Heads:
    """Of one stream, or of two, one behind the other, (B, S + T, H, D) each."""
    if second is None:
        return turned(first[0]), turned(first[1]), first[2]
    q, k = (turned(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    return q, k, torch.cat([first[2], second[2]], 1)


def in_two_parts(
    qkv: Projected, count: int, first: Rotation | None, second: Rotation | None
) -> Heads:
    """Of one stream, whose first ``count`` tokens rotate otherwise than those behind them."""
    if first is None and second is None:
        return together(qkv)
    q, k = (
        turned(
            each._replace(x=each.x[:, :count], rotation=first),
            each._replace(x=each.x[:, count:], rotation=second),
        )
        for each in qkv[:2]
    )
    return q, k, qkv[2]


def dispatch(attn: Any, qkv: Heads, mask: Tensor | None = None) -> Tensor:
    """Attention on the backend that ``attn`` is set to, (B, S, H·D)."""
    q, k, v = qkv
    y = dispatch_attention_fn(
        q,
        k,
        v,
        attn_mask=mask,
        backend=attn.processor._attention_backend,
        parallel_config=attn.processor._parallel_config,
    )
    return y.flatten(2).to(q.dtype)


def clipped(x: Tensor) -> Tensor:
    """Without infinities, if it is fp16."""
    return x.clip(-LARGEST_HALF, LARGEST_HALF) if x.dtype == torch.float16 else x


def is_untouched_norm(norm: Any, kind: type[Any]) -> bool:
    """Whether ``norm`` is an adaptive one of this class, around a plain one, with no embedder."""
    return (
        is_untouched(norm, kind)
        and getattr(norm, "emb", None) is None
        and is_untouched(norm.norm, nn.LayerNorm)
    )


def is_untouched_attention(attn: Any, kind: type[nn.Module], processor: type) -> bool:
    """Whether ``attn`` is of this class and runs this processor on projections of its own."""
    return (
        is_untouched(attn, kind)
        and type(attn.processor) is processor
        and not attn.fused_projections
    )


def drops_nothing(dropout: Any) -> bool:
    """Whether ``dropout`` is one of torch's, and asleep."""
    return is_untouched(dropout, nn.Dropout) and not (dropout.training and dropout.p > 0)
