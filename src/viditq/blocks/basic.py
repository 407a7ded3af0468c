"""diffusers' ``BasicTransformerBlock``, as PixArt and Latte configure it, with fused ops.

Self-attention, cross-attention (PixArt, and Latte's spatial blocks), feed-forward. A norm, its
modulation (adaLN-single, PixArt-α, arXiv 2310.00426, section 2.3) and the quantization of what they
make are one op; q, k and v are one product, as are k and v of the captions; GELU and the
quantization for the layer behind it are one op; gate and residual are added by the product before
them. Attention itself is in floating point, on views.

Declined, and left to the original forward: other norms, activations and attention processors,
positional embeddings inside the block, GLIGEN and other ``cross_attention_kwargs``, masks of
unusual shape, chunked feed-forward, active dropout, hooks on a submodule that the fused forward
would pass by, and calls that ask for a gradient, which integer products do not have.
"""

from typing import Any

import torch
from diffusers.models import attention
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from viditq.blocks.attention import attend
from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.inputs import Input, Modulated, Plain
from viditq.blocks.products import finish, gains, is_untouched, read
from viditq.models.basic_block import SHARED_INPUTS

__all__ = ["BasicTransformerBlock", "is_plain_mask"]


class BasicTransformerBlock(attention.BasicTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    # diffusers declares these for every configuration; `takes` admits one of them.
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    attn1: Any
    attn2: Any
    ff: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return (
            block.norm_type == "ada_norm_single"
            and block.pos_embed is None
            and not block.only_cross_attention
            and not hasattr(block, "fuser")
            and all(_is_plain_attention(attn) for attn in _attentions(block))
            and _is_untouched_inside(block)
            and gains(block, SHARED_INPUTS)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """As the original.

        Args:
            hidden_states: (B, S, C).
            attention_mask: (B, 1 or S, S) added to the scores of self-attention, or ``None``.
            encoder_hidden_states: captions, (B, T, C'); without cross-attention they are not read.
            encoder_attention_mask: (B, 1 or S, T) added to the scores of cross-attention.
            timestep: (B, 6·C), the modulation that all blocks share.
            cross_attention_kwargs, class_labels, added_cond_kwargs: for the original forward.

        Returns:
            (B, S, C).
        """
        captions = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if (
            hidden_states.ndim != 3
            or timestep is None
            or (self.attn2 is not None and encoder_hidden_states is None)
            or not is_plain_mask(attention_mask, hidden_states)
            or not (self.attn2 is None or is_plain_mask(encoder_attention_mask, captions))
            or cross_attention_kwargs
            or self._chunk_size is not None
            or (self.training and self.dropout > 0)
            or (torch.is_grad_enabled() and hidden_states.requires_grad)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,  # pyright: ignore[reportArgumentType]
                cross_attention_kwargs,  # pyright: ignore[reportArgumentType]
                class_labels,  # pyright: ignore[reportArgumentType]
                added_cond_kwargs,
            )
        modulation = self.scale_shift_table + timestep.reshape(hidden_states.shape[0], 6, -1)
        shift_attn, gain_attn, gate_attn, shift_ff, gain_ff, gate_ff = modulation.unbind(1)
        x = hidden_states.contiguous()  # PixArt's first block gets its tokens transposed
        normed = Modulated(x, self.norm1, gain_attn, shift_attn)
        x = _attend(self.attn1, normed, normed, attention_mask, x, gate_attn)
        if self.attn2 is not None:
            x = _attend(self.attn2, Plain(x), Plain(captions), encoder_attention_mask, x)
        return feed(self.ff, Modulated(x, self.norm2, gain_ff, shift_ff), x, gate_ff)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _attend(
    attn: Any,
    x: Input,
    context: Input,
    mask: Tensor | None,
    residual: Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """``gate · attn(x, context) + residual``: residual (B, S, C), gate (B, C) -> (B, S, C)."""
    if context is x:
        projected = read(x, [attn.to_q, attn.to_k, attn.to_v])
    else:
        projected = read(x, [attn.to_q]) + read(context, [attn.to_k, attn.to_v])
    q, k, v = (each.unflatten(-1, (attn.heads, -1)) for each in projected)
    bias = None if mask is None else mask[:, None]  # (B, 1, 1 or S, T), for every head
    out, _ = attn.to_out
    return finish(Plain(attend((q, k, v), bias)), out, residual, gate)


def _attentions(block: Any) -> list[Any]:
    return [attn for attn in (block.attn1, block.attn2) if attn is not None]


def _is_plain_attention(attn: Any) -> bool:
    """Whether there is nothing but projections and the attention between them."""
    norms = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return (
        all(norm is None for norm in norms)
        and attn.inner_kv_dim == attn.inner_dim
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )


def is_plain_mask(mask: Tensor | None, keys: Tensor) -> bool:
    """Whether ``mask`` is one for ``keys`` (B, T, …): ``None``, or (B, 1 or S, T)."""
    return mask is None or (
        mask.ndim == 3 and mask.shape[0] == keys.shape[0] and mask.shape[2] == keys.shape[1]
    )


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    return (
        is_untouched(block.norm1, nn.LayerNorm)
        and is_untouched(block.norm2, nn.LayerNorm)
        and is_plain_feed_forward(block.ff)
        and all(_is_untouched_attention(attn) for attn in _attentions(block))
    )


def _is_untouched_attention(attn: Any) -> bool:
    if not (is_untouched(attn, Attention) and type(attn.processor) is AttnProcessor2_0):
        return False
    _, dropout = attn.to_out  # pyright: ignore[reportGeneralTypeIssues]
    return is_untouched(dropout, nn.Dropout)
