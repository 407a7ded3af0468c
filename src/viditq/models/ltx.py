"""LTX-Video: one list of blocks, each with self-, cross-attention and feed-forward."""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import (
    CROSS_ATTENTION,
    FEED_FORWARD,
    SHARED_INPUTS,
    TOKEN_MASKS,
    self_attention,
)

__all__ = ["LTX"]

LTX = Adapter(
    name="ltx",
    transformer="LTXVideoTransformer3DModel",
    kind="video",
    roles={"transformer_blocks": self_attention("self_attn") | CROSS_ATTENTION | FEED_FORWARD},
    shared_inputs=SHARED_INPUTS,
    token_masks=TOKEN_MASKS,
)
