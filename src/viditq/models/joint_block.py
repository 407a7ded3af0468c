"""Names in blocks that attend jointly over an image's and a text's tokens, each stream with layers
of its own, as Stable Diffusion 3 introduced them.

The layers of the text stream have the roles of those of the image stream.
"""

__all__ = [
    "IMAGE_OUT",
    "JOINT_QKV",
    "QKV",
    "SHARED_INPUTS",
    "TEXT_OUT",
    "feed_forwards",
    "text_masks",
]

QKV = dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "self_attn.qkv")
TEXT_QKV = dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "self_attn.qkv")
JOINT_QKV = QKV | TEXT_QKV

IMAGE_OUT = {"attn.to_out.0": "self_attn.out"}
TEXT_OUT = {"attn.to_add_out": "self_attn.out"}

SHARED_INPUTS = (
    ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)


def feed_forwards(
    streams: tuple[str, ...] = ("ff", "ff_context"),
    layers: tuple[str, str] = ("net.0.proj", "net.2"),
) -> dict[str, str]:
    """Roles of the feed-forwards called ``streams``, whose two layers are called ``layers``."""
    up, down = layers
    return {
        f"{stream}.{layer}": role
        for stream in streams
        for layer, role in ((up, "ffn.up"), (down, "ffn.down"))
    }


def text_masks(argument: str, stream: str = "ff_context") -> dict[str, str]:
    """Token masks of the text's layers: all read captions, whose mask is ``argument``."""
    return dict.fromkeys((*TEXT_QKV, *TEXT_OUT, *feed_forwards((stream,))), argument)
