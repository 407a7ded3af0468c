"""Latte: spatial blocks as in PixArt, each followed by a temporal block without cross-attention."""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import (
    CROSS_ATTENTION,
    FEED_FORWARD,
    SHARED_INPUTS,
    TOKEN_MASKS,
    self_attention,
)

__all__ = ["LATTE"]

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
