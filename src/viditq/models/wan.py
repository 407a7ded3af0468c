"""Wan 2.1 and 2.2: one list of blocks, each with self-, cross-attention and feed-forward.

Image-to-video of Wan 2.1 has layers of its own for the tokens of the image, which stand before
those of the caption.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import SHARED_INPUTS as QKV_AND_CAPTIONS
from viditq.models.basic_block import self_attention

__all__ = ["SHARED_INPUTS", "WAN"]

SHARED_INPUTS = (*QKV_AND_CAPTIONS, ("attn2.add_k_proj", "attn2.add_v_proj"))

WAN = Adapter(
    name="wan",
    transformer="WanTransformer3DModel",
    kind="video",
    roles={
        "blocks": {
            **self_attention("self_attn"),
            "attn2.to_q": "cross_attn.q",
            "attn2.to_k": "cross_attn.kv",
            "attn2.to_v": "cross_attn.kv",
            "attn2.add_k_proj": "cross_attn.kv",
            "attn2.add_v_proj": "cross_attn.kv",
            "attn2.to_out.0": "cross_attn.out",
            "ffn.net.0.proj": "ffn.up",
            "ffn.net.2": "ffn.down",
        }
    },
    shared_inputs=SHARED_INPUTS,
)
