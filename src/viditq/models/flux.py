"""FLUX.1: blocks with a stream each for image and text, then blocks with one stream for both.

The last layer of a single block reads the attention and the activated feed-forward side by side; it
has the role of the feed-forward's last layer, which four fifths of its input are.
"""

from viditq.models.adapter import Adapter

__all__ = ["FLUX", "SHARED_INPUTS"]

# In single blocks the first layer of the feed-forward reads what the attention reads.
SHARED_INPUTS = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)

_QKV = dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "self_attn.qkv")

FLUX = Adapter(
    name="flux",
    transformer="FluxTransformer2DModel",
    kind="image",
    roles={
        "transformer_blocks": _QKV
        | {
            "attn.add_q_proj": "self_attn.qkv",
            "attn.add_k_proj": "self_attn.qkv",
            "attn.add_v_proj": "self_attn.qkv",
            "attn.to_out.0": "self_attn.out",
            "attn.to_add_out": "self_attn.out",
            "ff.net.0.proj": "ffn.up",
            "ff.net.2": "ffn.down",
            "ff_context.net.0.proj": "ffn.up",
            "ff_context.net.2": "ffn.down",
        },
        "single_transformer_blocks": {"proj_mlp": "ffn.up"} | _QKV | {"proj_out": "ffn.down"},
    },
    shared_inputs=SHARED_INPUTS,
)
