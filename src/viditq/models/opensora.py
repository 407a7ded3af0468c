"""Open-Sora 1.0 (STDiT): blocks with attention in the frame, over time and to the caption.

The network is viditq's own, :mod:`viditq.models.stdit`. Layers that read one tensor are one layer
already.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import FEED_FORWARD, TOKEN_MASKS

__all__ = ["STDIT"]

CROSS_ATTENTION = {
    "attn2.to_q": "cross_attn.q",
    "attn2.to_kv": "cross_attn.kv",
    "attn2.to_out": "cross_attn.out",
}

STDIT = Adapter(
    name="stdit",
    transformer="STDiTTransformer3DModel",
    module="viditq.models.stdit",
    kind="video",
    roles={
        "transformer_blocks": {
            "attn1.to_qkv": "self_attn.qkv",
            "attn1.to_out": "self_attn.out",
            "temporal_attn.to_qkv": "temporal_attn.qkv",
            "temporal_attn.to_out": "temporal_attn.out",
            **CROSS_ATTENTION,
            **FEED_FORWARD,
        }
    },
    shared_inputs=(),
    token_masks=TOKEN_MASKS,
)
