"""FLUX.2: blocks with a stream each for image and text, then blocks with one stream for both.

A single block has two layers: one makes queries, keys, values and the gated feed-forward at once,
the other reads attention and feed-forward side by side. They have the roles of the feed-forward,
which two thirds of the first's output and three quarters of the second's input are. Modulation is
made once for all blocks, outside of them.
"""

from viditq.models.adapter import Adapter
from viditq.models.joint_block import IMAGE_OUT, JOINT_QKV, SHARED_INPUTS, TEXT_OUT, feed_forwards

__all__ = ["FLUX2"]

FLUX2 = Adapter(
    name="flux2",
    transformer="Flux2Transformer2DModel",
    kind="image",
    roles={
        "transformer_blocks": {
            **JOINT_QKV,
            **TEXT_OUT,
            **IMAGE_OUT,
            **feed_forwards(layers=("linear_in", "linear_out")),
        },
        "single_transformer_blocks": {
            "attn.to_qkv_mlp_proj": "ffn.up",
            "attn.to_out": "ffn.down",
        },
    },
    shared_inputs=SHARED_INPUTS,
)
