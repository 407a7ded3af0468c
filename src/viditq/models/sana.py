"""Sana: one list of blocks, each with linear self-attention, cross-attention and a feed-forward.

The feed-forward is three convolutions; it stays float, and with it nearly half of the weights of a
block. Attention without softmax changes nothing for the layers around it.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import (
    CROSS_ATTENTION,
    SHARED_INPUTS,
    TOKEN_MASKS,
    self_attention,
)

__all__ = ["SANA"]

SANA = Adapter(
    name="sana",
    transformer="SanaTransformer2DModel",
    kind="image",
    roles={"transformer_blocks": self_attention("self_attn") | CROSS_ATTENTION},
    shared_inputs=SHARED_INPUTS,
    token_masks=TOKEN_MASKS,
)
