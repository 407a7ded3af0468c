"""Stable Diffusion 3 and 3.5: blocks with a stream each for image and text.

Some blocks of 3.5-medium attend a second time, over the image alone (``attn2``). The last block
makes no text: it lacks the layers behind the text's attention.
"""

from viditq.models.adapter import Adapter
from viditq.models.joint_block import IMAGE_OUT, JOINT_QKV, TEXT_OUT, feed_forwards
from viditq.models.joint_block import SHARED_INPUTS as OF_BOTH_STREAMS

__all__ = ["SD3", "SHARED_INPUTS"]

SHARED_INPUTS = (*OF_BOTH_STREAMS, ("attn2.to_q", "attn2.to_k", "attn2.to_v"))

SD3 = Adapter(
    name="sd3",
    transformer="SD3Transformer2DModel",
    kind="image",
    roles={
        "transformer_blocks": {
            **JOINT_QKV,
            **TEXT_OUT,
            **IMAGE_OUT,
            "attn2.to_q": "self_attn.qkv",
            "attn2.to_k": "self_attn.qkv",
            "attn2.to_v": "self_attn.qkv",
            "attn2.to_out.0": "self_attn.out",
            **feed_forwards(),
        }
    },
    shared_inputs=SHARED_INPUTS,
)
