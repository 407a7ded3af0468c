"""diffusers' ``LTXVideoTransformerBlock`` with fused ops.

Self-attention with rotary embedding, cross-attention to the caption, feed-forward. A norm (of the
mean square alone), its modulation and the quantization of what they make are one op; q, k and v are
one product, as are k and v of the caption; GELU and the quantization for the layer behind it are
one op; gate and residual are added by the product before them; the norm of q or k, across its
heads, and the rotation, of angles of each head's own, are one op. Attention is diffusers', with
the backend that its processor names.

The modulation is one for a sample or one for every token.

Declined, and left to the original forward: other attention processors, projections that diffusers
fused, masks and modulations of unusual shape, active dropout, hooks on a submodule that the fused
forward would pass by, and calls that ask for a gradient, which integer products do not have.
"""

from typing import Any

from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_ltx
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from torch import Tensor

from viditq.blocks.basic import is_plain_mask
from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.heads import stream, turned
from viditq.blocks.inputs import Input, Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched, read
from viditq.blocks.streams import dispatch, drops_nothing, is_untouched_attention
from viditq.models.basic_block import SHARED_INPUTS

__all__ = ["LTXVideoTransformerBlock"]

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, S, C) fp32 each, each number twice."""


class LTXVideoTransformerBlock(transformer_ltx.LTXVideoTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    norm1: Any
    norm2: Any
    attn1: Any
    attn2: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_inside(block) and gains(block, SHARED_INPUTS)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """As the original.

        Args:
            hidden_states: (B, S, C).
            encoder_hidden_states: caption, (B, T, C').
            temb: (B, 1 or S, 6·C), the modulation that all blocks share.
            image_rotary_emb: for the tokens, or ``None``.
            encoder_attention_mask: (B, 1, T) added to the scores of cross-attention.

        Returns:
            (B, S, C).
        """
        if (
            temb.shape[:-1] not in (hidden_states.shape[:-1], (hidden_states.shape[0], 1))
            or not is_plain_mask(encoder_attention_mask, encoder_hidden_states)
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, encoder_attention_mask
            )
        modulation = self.scale_shift_table + temb.unflatten(-1, (6, -1))
        shift_attn, gain_attn, gate_attn, shift_ff, gain_ff, gate_ff = modulation.unbind(2)
        x = hidden_states
        normed = Modulated(x, self.norm1, gain_attn, shift_attn)
        y = _attend(self.attn1, normed, normed, rotary=image_rotary_emb)
        x = finish(y, self.attn1.to_out[0], x, gate_attn)
        y = _attend(self.attn2, Plain(x), Plain(encoder_hidden_states), encoder_attention_mask)
        x = finish(y, self.attn2.to_out[0], x)
        return feed(self.ff, Modulated(x, self.norm2, gain_ff, shift_ff), x, gate_ff)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _attend(
    attn: Any,
    x: Input,
    context: Input,
    mask: Tensor | None = None,
    rotary: Rotary | None = None,
) -> Plain:
    """What ``attn`` sees for ``x`` (B, S, C) in the context (B, T, C'), (B, S, C)."""
    if context is x:
        q, k, v = read(x, [attn.to_q, attn.to_k, attn.to_v])
    else:
        (q,) = read(x, [attn.to_q])
        k, v = read(context, [attn.to_k, attn.to_v])
    rotation = None
    if rotary is not None:
        cos, sin = (each.unflatten(2, (attn.heads, -1))[..., ::2] for each in rotary)
        rotation = cos, sin
    q, k = (
        turned(stream(each, norm, attn.heads, rotation, across=True), across=True)
        for each, norm in ((q, attn.norm_q), (k, attn.norm_k))
    )
    v = v.unflatten(2, (attn.heads, -1))
    return Plain(dispatch(attn, (q, k, v), None if mask is None else mask[:, None]))


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    attentions = (block.attn1, block.attn2)
    dropouts = (block.attn1.to_out[1], block.attn2.to_out[1], block.ff.net[1])
    return (
        all(is_untouched(norm, RMSNorm) for norm in (block.norm1, block.norm2))
        and all(is_untouched_attention(a, LTXAttention, LTXVideoAttnProcessor) for a in attentions)
        and is_plain_feed_forward(block.ff)
        and all(drops_nothing(dropout) for dropout in dropouts)
    )
