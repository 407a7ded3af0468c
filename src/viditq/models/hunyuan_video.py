"""HunyuanVideo: blocks with a stream each for video and text, then blocks with one for both.

In single blocks attention reads a copy of what the feed-forward reads, taken apart and put together
again: two tensors with the same numbers, which are balanced each for itself. The refiner of the
caption, an embedder of two blocks, stays float. In single blocks, too, padding at the end of the
caption does not count: nothing attends to it, and its outliers would be balanced for.
"""

from viditq.models.adapter import Adapter
from viditq.models.joint_block import (
    IMAGE_OUT,
    JOINT_QKV,
    QKV,
    SHARED_INPUTS,
    TEXT_OUT,
    feed_forwards,
    text_masks,
)

__all__ = ["HUNYUAN_VIDEO", "SHARED_INPUTS"]

MASK = "encoder_attention_mask"

HUNYUAN_VIDEO = Adapter(
    name="hunyuan-video",
    transformer="HunyuanVideoTransformer3DModel",
    kind="video",
    roles={
        "transformer_blocks": JOINT_QKV | IMAGE_OUT | TEXT_OUT | feed_forwards(),
        "single_transformer_blocks": {"proj_mlp": "ffn.up"} | QKV | {"proj_out": "ffn.down"},
    },
    shared_inputs=SHARED_INPUTS,
    token_masks=text_masks(MASK) | {"single_transformer_blocks": MASK},
)
