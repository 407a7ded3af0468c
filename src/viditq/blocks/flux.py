"""diffusers' ``FluxTransformerBlock`` and ``FluxSingleTransformerBlock``, with fused ops.

A norm, its modulation (adaLN-zero, DiT, arXiv 2212.09748, section 3.2) and the quantization of what
they make are one op; q, k and v are one product in each stream, and in a single block the first
layer of the feed-forward is part of it. GELU and the quantization for the layer behind it are one
op, which in a single block takes the attention's columns along; gate and residual are added by the
product before them. Norm of the heads, rotary embedding and, of q or k, the putting together of
both streams are one op; attention is diffusers', on the backend that it is set to.

Declined, and left to the original forward: other attention processors, projections that diffusers
has fused, any ``joint_attention_kwargs`` (IP-Adapters among them), active dropout, hooks on a
submodule that the fused forward would pass by, and calls that ask for a gradient, which integer
products do not have.
"""

from typing import Any

import torch
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.heads import by_pair
from viditq.blocks.inputs import Gelu, Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched, read
from viditq.blocks.streams import (
    clipped,
    dispatch,
    drops_nothing,
    heads,
    is_untouched_attention,
    is_untouched_norm,
    modulation,
    own_heads,
    text_heads,
    together,
)
from viditq.models.flux import SHARED_INPUTS

__all__ = ["FluxSingleTransformerBlock", "FluxTransformerBlock"]

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (S, D) fp32 each."""


class FluxTransformerBlock(transformer_flux.FluxTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return (
            block.attn.added_kv_proj_dim is not None
            and _is_untouched_double(block)
            and gains(block, SHARED_INPUTS)
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the original.

        Args:
            hidden_states: of the image, (B, S, C).
            encoder_hidden_states: of the text, (B, T, C).
            temb: (B, C), embedding of the timestep.
            image_rotary_emb: for text and image, (T + S, D) each, or ``None``.
            joint_attention_kwargs: for the original forward.

        Returns:
            (B, T, C) of the text and (B, S, C) of the image.
        """
        if (
            joint_attention_kwargs
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_double(self)
        ):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
        attn, x, text = self.attn, hidden_states, encoder_hidden_states
        shift, gain, gate, *ff = modulation(self.norm1, temb)
        text_shift, text_gain, text_gate, *text_ff = modulation(self.norm1_context, temb)

        rotary, first = image_rotary_emb, text.shape[1]
        normed = Modulated(x, self.norm1.norm, gain, shift)
        own = own_heads(attn, normed, by_pair(rotary, first))
        normed = Modulated(text, self.norm1_context.norm, text_gain, text_shift)
        added = text_heads(attn, normed, by_pair(rotary, 0, first))
        text_y, y = dispatch(attn, together(added, own)).split([first, x.shape[1]], 1)

        x = finish(Plain(y), attn.to_out[0], x, gate)
        text = finish(Plain(text_y), attn.to_add_out, text, text_gate)
        shift, gain, gate = ff
        x = feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)
        shift, gain, gate = text_ff
        text = feed(self.ff_context, Modulated(text, self.norm2_context, gain, shift), text, gate)
        return clipped(text), x

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


class FluxSingleTransformerBlock(transformer_flux.FluxSingleTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return (
            block.attn.added_kv_proj_dim is None
            and _is_untouched_single(block)
            and gains(block, SHARED_INPUTS)
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the original; arguments and result are those of a block with two streams."""
        if (
            joint_attention_kwargs
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_single(self)
        ):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
        attn, x = self.attn, torch.cat([encoder_hidden_states, hidden_states], 1)
        shift, gain, gate = modulation(self.norm, temb)
        normed = Modulated(x, self.norm.norm, gain, shift)
        *projected, hidden = read(normed, [attn.to_q, attn.to_k, attn.to_v, self.proj_mlp])
        qkv = heads(attn, projected, attn.norm_q, attn.norm_k, by_pair(image_rotary_emb))
        y = dispatch(attn, together(qkv))
        x = finish(Gelu(hidden, self.act_mlp.approximate, left=y), self.proj_out, x, gate)
        text, image = clipped(x).split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return text, image

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _is_untouched_double(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    dropouts = (block.ff.net[1], block.ff_context.net[1], block.attn.to_out[1])
    return (
        all(is_untouched_norm(n, AdaLayerNormZero) for n in (block.norm1, block.norm1_context))
        and all(is_untouched(n, nn.LayerNorm) for n in (block.norm2, block.norm2_context))
        and all(is_plain_feed_forward(ff) for ff in (block.ff, block.ff_context))
        and is_untouched_attention(block.attn, FluxAttention, FluxAttnProcessor)
        and all(drops_nothing(dropout) for dropout in dropouts)
    )


def _is_untouched_single(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    return (
        is_untouched_norm(block.norm, AdaLayerNormZeroSingle)
        and is_untouched(block.act_mlp, nn.GELU)
        and is_untouched_attention(block.attn, FluxAttention, FluxAttnProcessor)
    )
