"""diffusers' ``JointTransformerBlock``, of Stable Diffusion 3 and 3.5, with fused ops.

A norm, its modulation (adaLN-zero, DiT, arXiv 2212.09748, section 3.2) and the quantization of what
they make are one op; q, k and v are one product in each stream, and in the second attention over
the image that some blocks have; GELU and the quantization for the layer behind it are one op; gate
and residual are added by the product before them. Where heads are normalized, their norm and, of q
or k, the putting together of both streams are one op. Attention is torch's, in floating point.

Declined, and left to the original forward: other attention processors, projections that diffusers
has fused, any ``joint_attention_kwargs`` (IP-Adapters among them), chunked feed-forward, active
dropout, hooks on a submodule that the fused forward would pass by, and calls that ask for a
gradient, which integer products do not have.
"""

from typing import Any

from diffusers.models import attention
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    SD35AdaLayerNormZeroX,
)
from torch import Tensor, nn

from viditq.blocks.attention import attend
from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.inputs import Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched
from viditq.blocks.streams import (
    drops_nothing,
    is_untouched_attention,
    is_untouched_norm,
    modulation,
    own_heads,
    text_heads,
    together,
)
from viditq.models.sd3 import SHARED_INPUTS

__all__ = ["JointTransformerBlock"]


class JointTransformerBlock(attention.JointTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn: Any
    attn2: Any
    norm1: Any
    norm1_context: Any
    norm2_context: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_inside(block) and gains(block, SHARED_INPUTS)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """As the original.

        Args:
            hidden_states: of the image, (B, S, C).
            encoder_hidden_states: of the text, (B, T, C).
            temb: (B, C), embedding of the timestep.
            joint_attention_kwargs: for the original forward.

        Returns:
            (B, T, C) of the text, ``None`` from the last block, and (B, S, C) of the image.
        """
        if (
            joint_attention_kwargs
            or self._chunk_size is not None
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, temb)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states,  # pyright: ignore[reportArgumentType]
                encoder_hidden_states,  # pyright: ignore[reportArgumentType]
                temb,  # pyright: ignore[reportArgumentType]
                joint_attention_kwargs,
            )
        attn, x, text = self.attn, hidden_states, encoder_hidden_states
        shift, gain, gate, ff_shift, ff_gain, ff_gate, *second = modulation(self.norm1, temb)
        if self.context_pre_only:
            text_gain, text_shift = modulation(self.norm1_context, temb)
            text_rest = []
        else:
            text_shift, text_gain, *text_rest = modulation(self.norm1_context, temb)
        own = own_heads(attn, Modulated(x, self.norm1.norm, gain, shift))
        normed = Modulated(text, self.norm1_context.norm, text_gain, text_shift)
        y = attend(together(own, text_heads(attn, normed)))
        y, text_y = y.split([x.shape[1], text.shape[1]], 1)

        image = finish(Plain(y), attn.to_out[0], x, gate)
        if second:
            shift, gain, gate = second
            y = attend(together(own_heads(self.attn2, Modulated(x, self.norm1.norm, gain, shift))))
            image = finish(Plain(y), self.attn2.to_out[0], image, gate)
        image = feed(self.ff, Modulated(image, self.norm2, ff_gain, ff_shift), image, ff_gate)
        if not text_rest:
            return None, image
        gate, shift, gain, ff_gate = text_rest
        text = finish(Plain(text_y), attn.to_add_out, text, gate)
        normed = Modulated(text, self.norm2_context, gain, shift)
        return feed(self.ff_context, normed, text, ff_gate), image

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    attentions = [attn for attn in (block.attn, block.attn2) if attn is not None]
    own = SD35AdaLayerNormZeroX if block.use_dual_attention else AdaLayerNormZero
    last = block.context_pre_only
    norms, feed_forwards = [block.norm2], [block.ff]
    if not last:
        norms, feed_forwards = [*norms, block.norm2_context], [*feed_forwards, block.ff_context]
    dropouts = [attn.to_out[1] for attn in attentions] + [ff.net[1] for ff in feed_forwards]
    return (
        all(is_untouched_attention(a, Attention, JointAttnProcessor2_0) for a in attentions)
        and is_untouched_norm(block.norm1, own)
        and is_untouched_norm(
            block.norm1_context, AdaLayerNormContinuous if last else AdaLayerNormZero
        )
        and all(is_untouched(norm, nn.LayerNorm) for norm in norms)
        and all(is_plain_feed_forward(ff) for ff in feed_forwards)
        and all(drops_nothing(dropout) for dropout in dropouts)
    )
