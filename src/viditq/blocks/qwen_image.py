"""diffusers' ``QwenImageTransformerBlock`` with fused ops.

A norm, its modulation and the quantization of what they make are one op; q, k and v are one product
in each stream; GELU and the quantization for the layer behind it are one op; gate and residual are
added by the product before them. Norm of the heads, rotation and, of q or k, the putting together
of both streams are one op; attention is diffusers', on the backend that it is set to.

Declined, and left to the original forward: other attention processors, projections that diffusers
has fused, any ``joint_attention_kwargs``, modulation by a second timestep for some of the tokens
(as in editing), active dropout, hooks on a submodule that the fused forward would pass by, and
calls that ask for a gradient, which integer products do not have.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers import transformer_qwenimage
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from torch import Tensor, nn

from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.heads import Rotation
from viditq.blocks.inputs import Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched
from viditq.blocks.streams import (
    clipped,
    dispatch,
    drops_nothing,
    is_untouched_attention,
    own_heads,
    text_heads,
    together,
)
from viditq.models.joint_block import SHARED_INPUTS

__all__ = ["QwenImageTransformerBlock"]

Rotary = tuple[Tensor, Tensor]
"""Complex numbers of modulus 1 for the image (S, D/2) and the text (T, D/2)."""


class QwenImageTransformerBlock(transformer_qwenimage.QwenImageTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return not block.zero_cond_t and _is_untouched_inside(block) and gains(block, SHARED_INPUTS)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        modulate_index: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """As the original.

        Args:
            hidden_states: of the image, (B, S, C).
            encoder_hidden_states: of the text, (B, T, C).
            encoder_hidden_states_mask: (B, T) bool, which of them are no padding; ``None``: all.
            temb: (B, C), embedding of the timestep.
            image_rotary_emb: for image and text, or ``None``.
            joint_attention_kwargs, modulate_index: for the original forward.

        Returns:
            (B, T, C) of the text and (B, S, C) of the image.
        """
        if (
            joint_attention_kwargs
            or modulate_index is not None
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask,  # pyright: ignore[reportArgumentType]
                temb,
                image_rotary_emb,
                joint_attention_kwargs,
                modulate_index,
            )
        attn, x, text = self.attn, hidden_states, encoder_hidden_states
        shift, gain, gate, *ff = self.img_mod(temb).chunk(6, -1)
        text_shift, text_gain, text_gate, *text_ff = self.txt_mod(temb).chunk(6, -1)
        rotation, text_rotation = map(_rotation, image_rotary_emb or (None, None))
        own = own_heads(attn, Modulated(x, self.img_norm1, gain, shift), rotation)
        normed = Modulated(text, self.txt_norm1, text_gain, text_shift)
        added = text_heads(attn, normed, text_rotation)
        mask = _joint_mask(encoder_hidden_states_mask, x)
        y = dispatch(attn, together(added, own), mask)
        text_y, y = y.split([text.shape[1], x.shape[1]], 1)

        x = finish(Plain(y), attn.to_out[0], x, gate)
        text = finish(Plain(text_y), attn.to_add_out, text, text_gate)
        shift, gain, gate = ff
        x = feed(self.img_mlp, Modulated(x, self.img_norm2, gain, shift), x, gate)
        shift, gain, gate = text_ff
        text = feed(self.txt_mlp, Modulated(text, self.txt_norm2, gain, shift), text, gate)
        return clipped(text), clipped(x)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _rotation(turns: Tensor | None) -> Rotation | None:
    """Of complex numbers (S, D/2)."""
    return None if turns is None else (turns.real[None, :, None], turns.imag[None, :, None])


def _joint_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, T) of the text -> (B, 1, 1, T + S); every token of the image ``x`` (B, S, C) counts."""
    if mask is None:
        return None
    ones = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return torch.cat([mask, ones], 1)[:, None, None]


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    norms = (block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2)
    dropouts = (block.img_mlp.net[1], block.txt_mlp.net[1], block.attn.to_out[1])
    return (
        all(is_untouched(norm, nn.LayerNorm) for norm in norms)
        and all(is_plain_feed_forward(ff) for ff in (block.img_mlp, block.txt_mlp))
        and is_untouched_attention(block.attn, Attention, QwenDoubleStreamAttnProcessor2_0)
        and all(drops_nothing(dropout) for dropout in dropouts)
    )
