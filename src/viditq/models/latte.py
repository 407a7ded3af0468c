"""Latte: spatial blocks, each followed by a temporal one; from a text, and from a class.

From a text, they are PixArt's blocks, the temporal ones without cross-attention. From a class, the
network is viditq's own, :mod:`viditq.models.latte_class`, whose layers that read one tensor are one
layer already.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import (
    CROSS_ATTENTION,
    FEED_FORWARD,
    SHARED_INPUTS,
    TOKEN_MASKS,
    self_attention,
)

__all__ = ["LATTE", "LATTE_CLASS"]

LATTE = Adapter(
    name="latte",
    transformer="LatteTransformer3DModel",
    kind="video",
    roles={
        "transformer_blocks": self_attention("self_attn") | CROSS_ATTENTION | FEED_FORWARD,
        "temporal_transformer_blocks": self_attention("temporal_attn") | FEED_FORWARD,
    },
    shared_inputs=SHARED_INPUTS,
    token_masks=TOKEN_MASKS,
    interleaved=True,
)

LATTE_CLASS = Adapter(
    name="latte-class",
    transformer="LatteClassTransformer3DModel",
    module="viditq.models.latte_class",
    kind="video",
    roles={
        "transformer_blocks": {
            "attn1.to_qkv": "self_attn.qkv",
            "attn1.to_out": "self_attn.out",
            **FEED_FORWARD,
        },
        "temporal_transformer_blocks": {
            "attn1.to_qkv": "temporal_attn.qkv",
            "attn1.to_out": "temporal_attn.out",
            **FEED_FORWARD,
        },
    },
    shared_inputs=(),
    interleaved=True,
)
