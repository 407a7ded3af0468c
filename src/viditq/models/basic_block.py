"""Names in diffusers' ``BasicTransformerBlock``, which PixArt and Latte are made of.

Other families have blocks of their own and some of these names.
"""

__all__ = ["CROSS_ATTENTION", "FEED_FORWARD", "SHARED_INPUTS", "TOKEN_MASKS", "self_attention"]

CROSS_ATTENTION = {
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.kv",
    "attn2.to_v": "cross_attn.kv",
    "attn2.to_out.0": "cross_attn.out",
}

FEED_FORWARD = {"ff.net.0.proj": "ffn.up", "ff.net.2": "ffn.down"}

TOKEN_MASKS = {"cross_attn.kv": "encoder_attention_mask"}

SHARED_INPUTS = (("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v"))


def self_attention(kind: str) -> dict[str, str]:
    """Roles of ``attn1``; ``kind`` is ``self_attn`` or ``temporal_attn``."""
    return {
        "attn1.to_q": f"{kind}.qkv",
        "attn1.to_k": f"{kind}.qkv",
        "attn1.to_v": f"{kind}.qkv",
        "attn1.to_out.0": f"{kind}.out",
    }
