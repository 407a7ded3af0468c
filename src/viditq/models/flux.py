"""FLUX.1: blocks with a stream each for image and text, then blocks with one stream for both.

The last layer of a single block reads the attention and the activated feed-forward side by side; it
has the role of the feed-forward's last layer, which four fifths of its input are.
"""

from viditq.models.adapter import Adapter
from viditq.models.joint_block import IMAGE_OUT, JOINT_QKV, QKV, TEXT_OUT, feed_forwards

__all__ = ["FLUX", "SHARED_INPUTS"]

# In single blocks the first layer of the feed-forward reads what the attention reads.
SHARED_INPUTS = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)

FLUX = Adapter(
    name="flux",
    transformer="FluxTransformer2DModel",
    kind="image",
    roles={
        "transformer_blocks": JOINT_QKV | IMAGE_OUT | TEXT_OUT | feed_forwards(),
        "single_transformer_blocks": {"proj_mlp": "ffn.up"} | QKV | {"proj_out": "ffn.down"},
    },
    shared_inputs=SHARED_INPUTS,
)
