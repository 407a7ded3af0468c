"""diffusers' ``WanTransformerBlock`` (Wan 2.1 and 2.2) with fused ops.

Self-attention with rotary embedding, cross-attention to the caption and, in image-to-video of Wan
2.1, to the image, feed-forward. A norm, its modulation and the quantization of what they make are
one op; q, k and v are one product, as are k and v of the caption and of the image; GELU and the
quantization for the layer behind it are one op; gate and residual are added by the product before
them; the norm of q or k, across its heads, and the rotation are one op. Attention is diffusers',
with the backend that its processor names, in floating point on views.

The modulation is in fp32, one for a sample or, in Wan 2.2's 5B model, one for every token.

Declined, and left to the original forward: other attention processors, projections that diffusers
fused, dropout, hooks on a submodule that the fused forward would pass by, modulations of unusual
shape, and calls that ask for a gradient, which integer products do not have.
"""

from typing import Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from viditq.blocks.heads import Rotation, stream, turned
from viditq.blocks.inputs import Gelu, Input, ModulatedInFp32, Plain
from viditq.blocks.products import finish, gains, is_untouched, read
from viditq.models.wan import SHARED_INPUTS

__all__ = ["WanTransformerBlock"]

CAPTION_TOKENS = 512
"""Every caption is padded to as many; tokens before them are those of the image."""


class WanTransformerBlock(transformer_wan.WanTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS

    norm1: nn.LayerNorm
    norm2: Any
    norm3: nn.LayerNorm
    attn1: Any
    attn2: Any
    ffn: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return (
            len(block.ffn.net) == 3 and _is_untouched_inside(block) and gains(block, SHARED_INPUTS)
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """As the original.

        Args:
            hidden_states: (B, S, C).
            encoder_hidden_states: tokens of the image, if the block reads them, and of the caption,
                (B, T, C).
            temb: (B, 6, C), or (B, S, 6, C) for every token, the modulation that all blocks share.
            rotary_emb: cosines and sines (1, S, 1, D), each number twice, or ``None``.

        Returns:
            (B, S, C).
        """
        tokens = hidden_states.shape[:-1]
        if (
            hidden_states.ndim != 3
            or encoder_hidden_states is None
            or temb.shape[:-2] not in (tokens[:1], tokens)
            or (torch.is_grad_enabled() and hidden_states.requires_grad)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states,
                encoder_hidden_states,
                temb,
                rotary_emb,  # pyright: ignore[reportArgumentType]
            )
        modulation = self.scale_shift_table + temb.float()
        shift_attn, gain_attn, gate_attn, shift_ff, gain_ff, gate_ff = modulation.unbind(-2)
        x = hidden_states
        normed = ModulatedInFp32(x, self.norm1, gain_attn, shift_attn)
        rotation = rotary_emb and (rotary_emb[0][..., ::2], rotary_emb[1][..., 1::2])
        attended = _attend_itself(self.attn1, normed, rotation)
        x = finish(attended, self.attn1.to_out[0], x, gate_attn)
        normed = Plain(x) if isinstance(self.norm2, nn.Identity) else ModulatedInFp32(x, self.norm2)
        attended = _attend_prompt(self.attn2, normed, encoder_hidden_states)
        x = finish(attended, self.attn2.to_out[0], x)
        up, _, down = self.ffn.net
        (hidden,) = read(ModulatedInFp32(x, self.norm3, gain_ff, shift_ff), [up.proj])
        return finish(Gelu(hidden, up.approximate), down, x, gate_ff)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _attend_itself(attn: Any, x: Input, rotation: Rotation | None) -> Plain:
    """What ``attn`` sees in the tokens ``x`` (B, S, C) themselves, (B, S, C)."""
    q, k, v = read(x, [attn.to_q, attn.to_k, attn.to_v])
    q = _normed(attn, q, attn.norm_q, rotation)
    k = _normed(attn, k, attn.norm_k, rotation)
    return Plain(_attention(attn, q, k, v, attn.processor._parallel_config))


def _attend_prompt(attn: Any, x: Input, prompt: Tensor) -> Plain:
    """What ``attn`` sees for ``x`` (B, S, C) in the prompt (B, T, C), (B, S, C)."""
    both = attn.add_k_proj is not None
    first = prompt.shape[1] - CAPTION_TOKENS if both else 0
    (q,) = read(x, [attn.to_q])
    q = _normed(attn, q, attn.norm_q)
    k, v = read(Plain(prompt[:, first:]), [attn.to_k, attn.to_v])
    y = _attention(attn, q, _normed(attn, k, attn.norm_k), v)
    if both:
        k, v = read(Plain(prompt[:, :first]), [attn.add_k_proj, attn.add_v_proj])
        y = y + _attention(attn, q, _normed(attn, k, attn.norm_added_k), v)
    return Plain(y)


def _normed(attn: Any, x: Tensor, norm: Any, rotation: Rotation | None = None) -> Tensor:
    """Queries or keys (B, S, H·D) -> (B, S, H, D), normalized across all heads, and rotated."""
    return turned(stream(x, norm, attn.heads, rotation, across=True), across=True)


def _attention(attn: Any, q: Tensor, k: Tensor, v: Tensor, parallel: Any = None) -> Tensor:
    """q (B, S, H, D), k (B, T, H, D) and v (B, T, H·D) -> (B, S, H·D)."""
    v = v.unflatten(-1, (attn.heads, -1))
    backend = attn.processor._attention_backend
    y = dispatch_attention_fn(q, k, v, backend=backend, parallel_config=parallel)
    return y.flatten(2).type_as(q)


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    up, dropout, _ = block.ffn.net
    return (
        is_untouched(block.norm1, FP32LayerNorm)
        and (is_untouched(block.norm2, FP32LayerNorm) or is_untouched(block.norm2, nn.Identity))
        and is_untouched(block.norm3, FP32LayerNorm)
        and is_untouched(block.ffn, FeedForward)
        and is_untouched(up, GELU)
        and _drops_nothing(dropout)
        and all(_is_untouched_attention(attn) for attn in (block.attn1, block.attn2))
    )


def _is_untouched_attention(attn: Any) -> bool:
    return (
        is_untouched(attn, WanAttention)
        and type(attn.processor) is WanAttnProcessor
        and not attn.fused_projections
        and _drops_nothing(attn.to_out[1])
    )


def _drops_nothing(module: Any) -> bool:
    return is_untouched(module, nn.Dropout) and not module.p
