"""The blocks of Open-Sora 1.0 and 1.2, :mod:`viditq.models.stdit` and ``stdit3``, with fused ops.

A norm, its modulation and the quantization of what they make are one op; GELU and the quantization
for the layer behind it are one op; gate and residual are added by the product before them.
Attention and what is done to queries and keys are the network's own, in floating point on views.

Attention over time reads the tokens place by place. Only their codes are put into this order and
back, a byte each; what is modulated, and the sum that every sublayer adds to, stay as they are.

Declined, and left to the original forward: hooks on a submodule that the fused forward would pass
by, active dropout, modulations of unusual shape, and calls that ask for a gradient, which integer
products do not have.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.inputs import Input, Modulated, Plain
from viditq.blocks.products import (
    asks_for_a_gradient,
    finish,
    gains,
    is_untouched,
    read,
    takes_codes,
)
from viditq.models import stdit, stdit3
from viditq.models.stdit import CrossAttention, SelfAttention, split
from viditq.nn import QuantLinear

__all__ = ["STDiT3Block", "STDiTBlock", "attend_along_time", "attend_in_frames"]


class STDiTBlock(stdit.STDiTBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = ()

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_inside(block) and gains(block, ())

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        temporal_position: Tensor | None = None,
    ) -> Tensor:
        """As the original."""
        if not _can_run(self, hidden_states, modulation, encoder_hidden_states):
            return super().forward(
                hidden_states, modulation, encoder_hidden_states, mask, temporal_position
            )
        x, table = hidden_states.contiguous(), self.scale_shift_table + modulation
        shift, gain, gate, *ff = split(table)
        x = attend_in_frames(self.attn1, self.norm1, x, gain, shift, gate)
        y = x if temporal_position is None else x + temporal_position[:, None]
        x = attend_along_time(self.temporal_attn, Plain(y), x, gate)
        x = _attend_caption(self.attn2, x, encoder_hidden_states, mask)
        shift, gain, gate = ff
        return feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


class STDiT3Block(stdit3.STDiT3Block):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = ()

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_inside(block) and gains(block, ())

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        angles: Tensor | None = None,
    ) -> Tensor:
        """As the original."""
        if not _can_run(self, hidden_states, modulation, encoder_hidden_states):
            return super().forward(hidden_states, modulation, encoder_hidden_states, mask, angles)
        x, table = hidden_states.contiguous(), self.scale_shift_table + modulation
        shift, gain, gate, *ff = split(table)
        if angles is None:
            x = attend_in_frames(self.attn1, self.norm1, x, gain, shift, gate)
        else:
            normed = Modulated(x, self.norm1, gain, shift)
            x = attend_along_time(self.attn1, normed, x, gate, angles)
        x = _attend_caption(self.attn2, x, encoder_hidden_states, mask)
        shift, gain, gate = ff
        return feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


@dataclass
class _PlaceByPlace:
    """``x`` of tokens (B, T, S) as one of (B·S, T)."""

    x: Input

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def tokens(self) -> torch.Size:
        batch, frames, places = self.x.tokens
        return torch.Size((batch * places, frames))

    def values(self) -> Tensor:
        return self.x.values().transpose(1, 2).flatten(0, 1)

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        codes, scale = self.x.codes(layer)
        return self._turned(codes), self._turned(scale) if scale.ndim else scale

    def _turned(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, self.x.tokens).transpose(1, 2).flatten(0, 2)


def attend_in_frames(
    attn: Any, norm: nn.LayerNorm, x: Tensor, gain: Tensor, shift: Tensor, gate: Tensor
) -> Tensor:
    """``gate · attn(modulated norm(x)) + x``: x (B, T, S, C), vectors (B, 1 or T, 1, C)."""
    # Of every frame, (B·T, C): layers see frames as samples.
    vectors = [each.expand(-1, x.shape[1], -1, -1).flatten(0, 2) for each in (gain, shift, gate)]
    frames = x.flatten(0, 1)
    (qkv,) = read(Modulated(frames, norm, *vectors[:2]), [attn.to_qkv])
    return finish(Plain(attn.attended(qkv)), attn.to_out, frames, vectors[2]).view_as(x)


def attend_along_time(
    attn: Any, x: Input, residual: Tensor, gate: Tensor, angles: Tensor | None = None
) -> Tensor:
    """``gate · attn(x) + residual``, at each place: (B, T, S, C), gate (B, 1 or T, 1, C)."""
    batch, _, places = x.tokens
    (qkv,) = read(_PlaceByPlace(x), [attn.to_qkv])
    y = attn.attended(qkv, angles)
    if takes_codes(attn.to_out):
        frame_by_frame = _PlaceByPlace(Plain(y.unflatten(0, (batch, places))))
        rows = residual.flatten(0, 1)
        return finish(frame_by_frame, attn.to_out, rows, gate).view_as(residual)
    y = attn.to_out(y).unflatten(0, (batch, places)).transpose(1, 2)
    return (residual + gate * y).to(residual.dtype)


def _attend_caption(attn: Any, x: Tensor, caption: Tensor, mask: Tensor | None) -> Tensor:
    """``attn(x, caption) + x``: x (B, T, S, C), caption (B, L, C), mask (B, L)."""
    tokens = x.flatten(1, 2)
    (q,) = read(Plain(tokens), [attn.to_q])
    (kv,) = read(Plain(caption), [attn.to_kv])
    return finish(Plain(attn.attended(q, kv, mask)), attn.to_out, tokens).view_as(x)


def _can_run(block: Any, x: Tensor, modulation: Tensor, caption: Tensor) -> bool:
    return (
        x.ndim == 4
        and modulation.shape[:2] in ((x.shape[0], 1), x.shape[:2])
        and not asks_for_a_gradient(x, modulation, caption)
        and _is_untouched_inside(block)
    )


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as the network made it."""
    dropout = block.ff.net[1]
    attentions = (block.attn1, getattr(block, "temporal_attn", block.attn1))
    return (
        is_untouched(block.norm1, nn.LayerNorm)
        and is_untouched(block.norm2, nn.LayerNorm)
        and all(is_untouched(attn, SelfAttention) for attn in attentions)
        and is_untouched(block.attn2, CrossAttention)
        and is_plain_feed_forward(block.ff)
        and not (dropout.training and dropout.p > 0)
    )
