"""diffusers' ``Flux2TransformerBlock`` and ``Flux2SingleTransformerBlock``, with fused ops.

A norm, its modulation and the quantization of what they make are one op; q, k and v are one product
in each stream; in a single block they and the first layer of the feed-forward are one layer
already. Gate and residual are added by the product before them. Norm of the heads, rotary embedding
and, of q or k, the putting together of both streams are one op. The gated activation is plain
torch, left to a compiler; attention is diffusers', on the backend that it is set to.

The modulation is made once for all blocks, and may be one for all samples.

Declined, and left to the original forward: other attention processors (those that keep keys and
values of reference images among them), projections that diffusers has fused, any
``joint_attention_kwargs``, modulations of unusual shape, active dropout, hooks on a submodule that
the fused forward would pass by, and calls that ask for a gradient, which integer products do not
have.
"""

from typing import Any

import torch
from diffusers.models.transformers import transformer_flux2
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2FeedForward,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from torch import Tensor, nn

from viditq.blocks.heads import by_pair
from viditq.blocks.inputs import Input, Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched, read
from viditq.blocks.streams import (
    clipped,
    dispatch,
    drops_nothing,
    heads,
    is_untouched_attention,
    own_heads,
    text_heads,
    together,
)
from viditq.models.joint_block import SHARED_INPUTS

__all__ = ["Flux2SingleTransformerBlock", "Flux2TransformerBlock"]

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (S, D) fp32 each."""


class Flux2TransformerBlock(transformer_flux2.Flux2TransformerBlock):
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
        temb_mod_img: Tensor,
        temb_mod_txt: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the original.

        Args:
            hidden_states: of the image, (B, S, C).
            encoder_hidden_states: of the text, (B, T, C).
            temb_mod_img, temb_mod_txt: (B or 1, 6·C), or (B or 1, 1, 6·C), modulation of each.
            image_rotary_emb: for text and image, (T + S, D) each, or ``None``.
            joint_attention_kwargs: for the original forward.

        Returns:
            (B, T, C) of the text and (B, S, C) of the image.
        """
        if (
            joint_attention_kwargs
            or not all(_is_plain(each, hidden_states) for each in (temb_mod_img, temb_mod_txt))
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt)
            or not _is_untouched_double(self)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb_mod_img,
                temb_mod_txt,
                image_rotary_emb,
                joint_attention_kwargs,
            )
        attn, x, text = self.attn, hidden_states, encoder_hidden_states
        shift, gain, gate, *ff = temb_mod_img.chunk(6, -1)
        text_shift, text_gain, text_gate, *text_ff = temb_mod_txt.chunk(6, -1)
        rotary, first = image_rotary_emb, text.shape[1]
        normed = Modulated(x, self.norm1, gain, shift)
        own = own_heads(attn, normed, by_pair(rotary, first))
        normed = Modulated(text, self.norm1_context, text_gain, text_shift)
        added = text_heads(attn, normed, by_pair(rotary, 0, first))
        text_y, y = dispatch(attn, together(added, own)).split([first, x.shape[1]], 1)

        x = finish(Plain(y), attn.to_out[0], x, gate)
        text = finish(Plain(text_y), attn.to_add_out, text, text_gate)
        shift, gain, gate = ff
        x = _feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)
        shift, gain, gate = text_ff
        text = _feed(self.ff_context, Modulated(text, self.norm2_context, gain, shift), text, gate)
        return clipped(text), x

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


class Flux2SingleTransformerBlock(transformer_flux2.Flux2SingleTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = ()
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_single(block) and gains(block, ())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        temb_mod: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        split_hidden_states: bool = False,
        text_seq_len: int | None = None,
    ) -> Any:
        """As the original.

        Args:
            hidden_states: (B, S, C), of text and image, or of the image.
            encoder_hidden_states: of the text, (B, T, C), or ``None`` if it is in the former.
            temb_mod: (B or 1, 3·C), or (B or 1, 1, 3·C), modulation.
            image_rotary_emb: for text and image, (T + S, D) each, or ``None``.
            joint_attention_kwargs: for the original forward.
            split_hidden_states: give text and image apart.
            text_seq_len: how many of the tokens are the text's, if it is not given apart.

        Returns:
            (B, T + S, C), or (B, T, C) and (B, S, C).
        """
        if (
            joint_attention_kwargs
            or not _is_plain(temb_mod, hidden_states)
            or asks_for_a_gradient(hidden_states, temb_mod)
            or (encoder_hidden_states is not None and asks_for_a_gradient(encoder_hidden_states))
            or not _is_untouched_single(self)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb_mod,
                image_rotary_emb,
                joint_attention_kwargs,
                split_hidden_states,
                text_seq_len,
            )
        attn, x = self.attn, hidden_states
        if encoder_hidden_states is not None:
            text_seq_len = encoder_hidden_states.shape[1]
            x = torch.cat([encoder_hidden_states, x], 1)
        shift, gain, gate = temb_mod.chunk(3, -1)
        (projected,) = read(Modulated(x, self.norm, gain, shift), [attn.to_qkv_mlp_proj])
        width = attn.inner_dim
        *qkv, hidden = projected.split([width] * 3 + [projected.shape[-1] - 3 * width], -1)
        projected = heads(attn, qkv, attn.norm_q, attn.norm_k, by_pair(image_rotary_emb))
        y = dispatch(attn, together(projected))
        activated = torch.cat([y, attn.mlp_act_fn(hidden)], -1)
        x = clipped(finish(Plain(activated), attn.to_out, x, gate))
        return (x[:, :text_seq_len], x[:, text_seq_len:]) if split_hidden_states else x

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _feed(ff: Any, x: Input, residual: Tensor, gate: Tensor) -> Tensor:
    """``gate · ff(x) + residual``, see :func:`~viditq.blocks.products.finish`."""
    (hidden,) = read(x, [ff.linear_in])
    return finish(Plain(ff.act_fn(hidden)), ff.linear_out, residual, gate)


def _is_plain(modulation: Tensor, x: Tensor) -> bool:
    """Whether ``modulation`` has vectors for every sample of ``x`` (B, S, C), or for all."""
    samples, *tokens = modulation.shape[:-1]
    return samples in (1, x.shape[0]) and tokens in ([], [1])


def _is_untouched_double(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    norms = (block.norm1, block.norm1_context, block.norm2, block.norm2_context)
    return (
        all(is_untouched(norm, nn.LayerNorm) for norm in norms)
        and all(is_untouched(ff, Flux2FeedForward) for ff in (block.ff, block.ff_context))
        and is_untouched_attention(block.attn, Flux2Attention, Flux2AttnProcessor)
        and drops_nothing(block.attn.to_out[1])
    )


def _is_untouched_single(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    return is_untouched(block.norm, nn.LayerNorm) and is_untouched_attention(
        block.attn, Flux2ParallelSelfAttention, Flux2ParallelSelfAttnProcessor
    )
