"""diffusers' ``CogVideoXBlock`` with fused ops.

Caption and video are modulated apart and go through the same layers as one sequence. A norm, its
modulation and the quantization of what they make are one op in each stream; their codes, put one
after the other, are what the products read. GELU and the quantization for the layer behind it are
one op; gates and residuals are added by products of each stream's own codes. The norm of queries or
keys and the rotation of those of the video are one op.

Declined, and left to the original forward: other attention processors, projections that diffusers
has fused, any ``attention_kwargs``, active dropout, hooks on a submodule that the fused forward
would pass by, and calls that ask for a gradient, which integer products do not have.
"""

from typing import Any

from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers import cogvideox_transformer_3d
from torch import Tensor

from viditq.blocks.attention import attend
from viditq.blocks.feed_forward import is_plain_feed_forward
from viditq.blocks.heads import by_pair
from viditq.blocks.inputs import Gelu, Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, gains, read
from viditq.blocks.streams import (
    OneAfterAnother,
    drops_nothing,
    finish_each,
    in_two_parts,
    is_untouched_attention,
    is_untouched_norm,
    modulation,
    own_heads,
)
from viditq.models.cogvideox import SHARED_INPUTS

__all__ = ["CogVideoXBlock"]

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (S, D) fp32 each."""


class CogVideoXBlock(cogvideox_transformer_3d.CogVideoXBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn1: Any
    ff: Any

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
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the original.

        Args:
            hidden_states: of the video, (B, S, C).
            encoder_hidden_states: of the caption, (B, T, C).
            temb: (B, E), embedding of the timestep.
            image_rotary_emb: for the video, (S, D) each, or ``None``.
            attention_kwargs: for the original forward.

        Returns:
            (B, S, C) of the video and (B, T, C) of the caption.
        """
        if (
            attention_kwargs
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, attention_kwargs
            )
        streams = [encoder_hidden_states, hidden_states]
        normed, gates = _normed(self.norm1, streams, temb)
        projected, first = own_heads(self.attn1, normed), encoder_hidden_states.shape[1]
        y = attend(in_two_parts(projected, first, None, by_pair(image_rotary_emb)))
        streams = finish_each(Plain(y), self.attn1.to_out[0], streams, gates)

        normed, gates = _normed(self.norm2, streams, temb)
        up, _, down, _ = self.ff.net
        (hidden,) = read(normed, [up.proj])
        text, video = finish_each(Gelu(hidden, up.approximate), down, streams, gates)
        return video, text

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _normed(
    norm: Any, streams: list[Tensor], temb: Tensor
) -> tuple[OneAfterAnother, tuple[Tensor, Tensor]]:
    """Caption and video (B, T, C), (B, S, C), normalized and modulated, and the gate of each."""
    text, video = streams
    shift, gain, gate, text_shift, text_gain, text_gate = modulation(norm, temb)
    modulated = (
        Modulated(text, norm.norm, text_gain, text_shift),
        Modulated(video, norm.norm, gain, shift),
    )
    return OneAfterAnother(modulated), (text_gate, gate)


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    return (
        all(is_untouched_norm(norm, CogVideoXLayerNormZero) for norm in (block.norm1, block.norm2))
        and is_untouched_attention(block.attn1, Attention, CogVideoXAttnProcessor2_0)
        and is_plain_feed_forward(block.ff, final_dropout=True)
        and all(drops_nothing(d) for d in (block.attn1.to_out[1], block.ff.net[1], block.ff.net[3]))
    )
