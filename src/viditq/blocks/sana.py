"""diffusers' ``SanaTransformerBlock`` with fused ops, up to its feed-forward.

Linear self-attention and cross-attention. The first norm, its modulation and the quantization of
what they make are one op; q, k and v are one product, as are k and v of the caption; gate and
residual are added by the product before them. Attention is plain torch: the linear one sums keys
and values in fp32, before queries see them. The feed-forward is convolutions, which are not
quantized; it and the norm before it run as they are.

Declined, and left to the original forward: other attention processors, projections that diffusers
fused, masks and modulations of unusual shape, fp16, which is clipped on the way, active dropout,
hooks on a submodule that the fused forward would pass by, and calls that ask for a gradient, which
integer products do not have.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from diffusers.models.transformers import sana_transformer
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import Tensor, nn

from viditq.blocks.attention import attend
from viditq.blocks.basic import is_plain_mask
from viditq.blocks.inputs import Modulated, Plain
from viditq.blocks.products import asks_for_a_gradient, finish, gains, is_untouched, read
from viditq.blocks.streams import drops_nothing, is_untouched_attention
from viditq.models.basic_block import SHARED_INPUTS

__all__ = ["SanaTransformerBlock"]

TINY = 1e-15
"""What a sum of weights is kept from zero by."""


class SanaTransformerBlock(sana_transformer.SanaTransformerBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = SHARED_INPUTS
    attn1: Any
    attn2: Any

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return (
            getattr(block, "attn2", None) is not None
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
        height: Any = None,
        width: Any = None,
    ) -> Tensor:
        """As the original.

        Args:
            hidden_states: (B, S, C).
            attention_mask: that the original does not read, either.
            encoder_hidden_states: caption, (B, T, C').
            encoder_attention_mask: (B, 1, T) added to the scores of cross-attention.
            timestep: (B, 6·C), the modulation that all blocks share.
            height, width: of the image in tokens; their product is S.

        Returns:
            (B, S, C).
        """
        if (
            timestep is None
            or encoder_hidden_states is None
            or hidden_states.dtype == torch.float16
            or timestep.dtype != hidden_states.dtype
            or not is_plain_mask(encoder_attention_mask, encoder_hidden_states)
            or asks_for_a_gradient(hidden_states, encoder_hidden_states, timestep)
            or not _is_untouched_inside(self)
        ):
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,  # pyright: ignore[reportArgumentType]
                height,
                width,
            )
        modulation = self.scale_shift_table + timestep.reshape(hidden_states.shape[0], 6, -1)
        shift, gain, gate, ff_shift, ff_gain, ff_gate = modulation.unbind(1)
        x, attn, cross = hidden_states, self.attn1, self.attn2
        projected = read(Modulated(x, self.norm1, gain, shift), [attn.to_q, attn.to_k, attn.to_v])
        x = finish(Plain(_attend_linearly(attn, *projected)), attn.to_out[0], x, gate)

        (q,) = read(Plain(x), [cross.to_q])
        k, v = read(Plain(encoder_hidden_states), [cross.to_k, cross.to_v])
        q, k = _normed(cross, q, k)
        q, k, v = (each.unflatten(-1, (cross.heads, -1)) for each in (q, k, v))
        bias = None if encoder_attention_mask is None else encoder_attention_mask[:, None]
        x = finish(Plain(attend((q, k, v), bias)), cross.to_out[0], x)

        tokens = Modulated(x, self.norm2, ff_gain, ff_shift).values()
        image = self.ff(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        return x + ff_gate[:, None] * image.flatten(2, 3).permute(0, 2, 1)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _attend_linearly(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with weights ``relu(q) · relu(k)``, (B, S, C) (Sana, arXiv 2410.10629, 2.2)."""
    dtype = q.dtype
    q, k = _normed(attn, q, k)
    q, k, v = (each.transpose(1, 2).unflatten(1, (attn.heads, -1)) for each in (q, k, v))
    q, k, v = F.relu(q).float(), F.relu(k).float(), v.float()  # (B, H, D, S)
    # A row of ones adds up the weights beside the weighted values.
    sums = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(2, 3)  # (B, H, D + 1, D)
    y = sums @ q
    y = y[:, :, :-1] / (y[:, :, -1:] + TINY)
    return y.flatten(1, 2).transpose(1, 2).to(dtype)


def _normed(attn: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, C) and (B, T, C), normalized if there are norms."""
    norm_q, norm_k = attn.norm_q, attn.norm_k
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k)


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as diffusers made it."""
    attn, cross = block.attn1, block.attn2
    return (
        all(is_untouched(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
        and is_untouched_attention(attn, Attention, SanaLinearAttnProcessor2_0)
        and is_untouched_attention(cross, Attention, SanaAttnProcessor2_0)
        and all(each.inner_kv_dim == each.inner_dim for each in (attn, cross))
        and all(drops_nothing(each.to_out[1]) for each in (attn, cross))
    )
