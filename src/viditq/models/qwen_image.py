"""Qwen-Image: one list of blocks, with a stream each for image and text.

Modulation is made in every block (``img_mod``, ``txt_mod``) and stays float.
"""

from viditq.models.adapter import Adapter
from viditq.models.joint_block import (
    IMAGE_OUT,
    JOINT_QKV,
    SHARED_INPUTS,
    TEXT_OUT,
    feed_forwards,
    text_masks,
)

__all__ = ["QWEN_IMAGE"]

QWEN_IMAGE = Adapter(
    name="qwen-image",
    transformer="QwenImageTransformer2DModel",
    kind="image",
    roles={
        "transformer_blocks": {
            **JOINT_QKV,
            **IMAGE_OUT,
            **TEXT_OUT,
            **feed_forwards(("img_mlp", "txt_mlp")),
        }
    },
    shared_inputs=SHARED_INPUTS,
    token_masks=text_masks("encoder_hidden_states_mask", "txt_mlp"),
)
