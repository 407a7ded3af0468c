"""Open-Sora 1.0 (STDiT) and 1.2 (STDiT3): spatial and temporal attention, in one block or in two.

The networks are viditq's own, :mod:`viditq.models.stdit` and :mod:`viditq.models.stdit3`. Layers
that read one tensor are one layer already.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import FEED_FORWARD, TOKEN_MASKS

__all__ = ["STDIT", "STDIT3"]

_SPATIAL = {"attn1.to_qkv": "self_attn.qkv", "attn1.to_out": "self_attn.out"}
_REST = {
    "attn2.to_q": "cross_attn.q",
    "attn2.to_kv": "cross_attn.kv",
    "attn2.to_out": "cross_attn.out",
    **FEED_FORWARD,
}

STDIT = Adapter(
    name="stdit",
    transformer="STDiTTransformer3DModel",
    module="viditq.models.stdit",
    kind="video",
    roles={
        "transformer_blocks": {
            **_SPATIAL,
            "temporal_attn.to_qkv": "temporal_attn.qkv",
            "temporal_attn.to_out": "temporal_attn.out",
            **_REST,
        }
    },
    shared_inputs=(),
    token_masks=TOKEN_MASKS,
)

STDIT3 = Adapter(
    name="stdit3",
    transformer="STDiT3Transformer3DModel",
    module="viditq.models.stdit3",
    kind="video",
    roles={
        "transformer_blocks": {**_SPATIAL, **_REST},
        "temporal_transformer_blocks": {
            "attn1.to_qkv": "temporal_attn.qkv",
            "attn1.to_out": "temporal_attn.out",
            **_REST,
        },
    },
    shared_inputs=(),
    token_masks=TOKEN_MASKS,
    interleaved=True,
)
