"""CogVideoX: one list of blocks, in which caption and video are one sequence.

The norms of a block hold the modulation of the timestep, which stays float.
"""

from viditq.models.adapter import Adapter
from viditq.models.basic_block import FEED_FORWARD, self_attention

__all__ = ["COGVIDEOX", "SHARED_INPUTS"]

SHARED_INPUTS = (("attn1.to_q", "attn1.to_k", "attn1.to_v"),)

COGVIDEOX = Adapter(
    name="cogvideox",
    transformer="CogVideoXTransformer3DModel",
    kind="video",
    roles={"transformer_blocks": self_attention("self_attn") | FEED_FORWARD},
    shared_inputs=SHARED_INPUTS,
)
