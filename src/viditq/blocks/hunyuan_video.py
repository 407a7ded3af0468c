"""diffusers' ``HunyuanVideoTransformerBlock`` and ``…SingleTransformerBlock``, with fused ops.

A norm, its modulation (adaLN-zero, DiT, arXiv 2212.09748, section 3.2) and the quantization of what
they make are one op; q, k and v are one product in each stream. GELU and the quantization for the
layer behind it are one op, which in a single block takes the attention's columns along; gate and
residual are added by the product before them. In a single block the first layer of the feed-forward
is balanced apart from the attention's, so what both read is quantized twice. Norm of the heads, the
rotation of those of the video and, of q or k, the putting together of both streams are one op;
attention is diffusers', on the backend that it is set to.

Declined, and left to the original forward: other attention processors, projections that diffusers
has fused, active dropout, hooks on a submodule that the fused forward would pass by, and calls that
ask for a gradient, which integer products do not have. Image-to-video that replaces tokens has
blocks of other classes, which are not fused.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers import transformer_hunyuan_video
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor, nn

from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.heads import by_pair
from viditq.blocks.inputs import Gelu, Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched, read
from viditq.blocks.streams import (
    dispatch,
    drops_nothing,
    in_two_parts,
    is_untouched_attention,
    is_untouched_norm,
    modulation,
    own_heads,
    text_heads,
    together,
)
from viditq.models.hunyuan_video import SHARED_INPUTS

__all__ = ["HunyuanVideoSingleTransformerBlock", "HunyuanVideoTransformerBlock"]

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (S, D) fp32 each."""


class HunyuanVideoTransformerBlock(transformer_hunyuan_video.HunyuanVideoTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_double(block) and gains(block, SHARED_INPUTS)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Tensor | None = None,
        freqs_cis: Rotary | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """As the original.

        Args:
            hidden_states: of the video, (B, S, C).
            encoder_hidden_states: of the text, (B, T, C).
            temb: (B, C), embedding of the timestep.
            attention_mask: (B, 1, 1, S + T) bool, tokens to attend to, or ``None``.
            freqs_cis: for the video, (S, D) each, or ``None``.
            *args, **kwargs: that the original does not read, either.

        Returns:
            (B, S, C) of the video and (B, T, C) of the text.
        """
        if asks_for_a_gradient(
            hidden_states, encoder_hidden_states, temb
        ) or not _is_untouched_double(self):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb,
                attention_mask,
                freqs_cis,
                *args,
                **kwargs,
            )
        attn, x, text = self.attn, hidden_states, encoder_hidden_states
        shift, gain, gate, *ff = modulation(self.norm1, temb)
        text_shift, text_gain, text_gate, *text_ff = modulation(self.norm1_context, temb)
        own = own_heads(attn, Modulated(x, self.norm1.norm, gain, shift), by_pair(freqs_cis))
        normed = Modulated(text, self.norm1_context.norm, text_gain, text_shift)
        qkv = together(own, text_heads(attn, normed))
        y, text_y = dispatch(attn, qkv, attention_mask).split([x.shape[1], text.shape[1]], 1)

        x = finish(Plain(y), attn.to_out[0], x, gate)
        text = finish(Plain(text_y), attn.to_add_out, text, text_gate)
        shift, gain, gate = ff
        x = feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)
        shift, gain, gate = text_ff
        normed = Modulated(text, self.norm2_context, gain, shift)
        return x, feed(self.ff_context, normed, text, gate)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


class HunyuanVideoSingleTransformerBlock(
    transformer_hunyuan_video.HunyuanVideoSingleTransformerBlock
):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_single(block) and gains(block, SHARED_INPUTS)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """As the original; arguments and result are those of a block with two streams."""
        if asks_for_a_gradient(
            hidden_states, encoder_hidden_states, temb
        ) or not _is_untouched_single(self):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb,
                attention_mask,
                image_rotary_emb,
                *args,
                **kwargs,
            )
        lengths = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        x = torch.cat([hidden_states, encoder_hidden_states], 1)
        shift, gain, gate = modulation(self.norm, temb)
        normed = Modulated(x, self.norm.norm, gain, shift)
        projected = own_heads(self.attn, normed)
        qkv = in_two_parts(projected, lengths[0], by_pair(image_rotary_emb), None)
        y = dispatch(self.attn, qkv, attention_mask)
        (hidden,) = read(normed, [self.proj_mlp])
        x = finish(Gelu(hidden, self.act_mlp.approximate, left=y), self.proj_out, x, gate)
        video, text = x.split(lengths, 1)
        return video, text

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _is_untouched_double(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    dropouts = (block.ff.net[1], block.ff_context.net[1], block.attn.to_out[1])
    return (
        all(is_untouched_norm(n, AdaLayerNormZero) for n in (block.norm1, block.norm1_context))
        and all(is_untouched(n, nn.LayerNorm) for n in (block.norm2, block.norm2_context))
        and all(is_plain_feed_forward(ff) for ff in (block.ff, block.ff_context))
        and is_untouched_attention(block.attn, Attention, HunyuanVideoAttnProcessor2_0)
        and all(drops_nothing(dropout) for dropout in dropouts)
    )


def _is_untouched_single(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    return (
        is_untouched_norm(block.norm, AdaLayerNormZeroSingle)
        and is_untouched(block.act_mlp, nn.GELU)
        and is_untouched_attention(block.attn, Attention, HunyuanVideoAttnProcessor2_0)
    )
