"""The block of Latte for classes, :mod:`viditq.models.latte_class`, with fused ops.

It is Open-Sora's (:mod:`viditq.blocks.stdit`) with one attention, in the frame or along time, no
caption, and a modulation that it computes itself, in floating point. What is said and declined
there holds here too.
"""

from typing import Any

from torch import Tensor, nn

from viditq.blocks.feed_forward import feed, is_plain_feed_forward
from viditq.blocks.inputs import Modulated
from viditq.blocks.products import asks_for_a_gradient, gains, is_untouched
from viditq.blocks.stdit import attend_along_time, attend_in_frames
from viditq.models import latte_class
from viditq.models.stdit import SelfAttention

__all__ = ["LatteClassBlock"]


class LatteClassBlock(latte_class.LatteClassBlock):
    """The fused twin; made by :func:`viditq.blocks.fuse_`, never constructed."""

    shared_inputs = ()

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether ``block``, an original, can be fused and has a layer that gains by it."""
        return _is_untouched_inside(block) and gains(block, ())

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """As the original."""
        if (
            hidden_states.ndim != 4
            or condition.shape[0] != hidden_states.shape[0]
            or asks_for_a_gradient(hidden_states, condition)
            or not _is_untouched_inside(self)
        ):
            return super().forward(hidden_states, condition)
        x = hidden_states.contiguous()
        shift, gain, gate, *ff = latte_class.rows(self.modulation(condition), 6)
        if self.over_time:
            x = attend_along_time(self.attn1, Modulated(x, self.norm1, gain, shift), x, gate)
        else:
            x = attend_in_frames(self.attn1, self.norm1, x, gain, shift, gate)
        shift, gain, gate = ff
        return feed(self.ff, Modulated(x, self.norm2, gain, shift), x, gate)

    def _get_name(self) -> str:
        return f"Fused{super()._get_name()}"


def _is_untouched_inside(block: Any) -> bool:
    """Whether every submodule that the fused forward passes by is as the network made it."""
    dropout = block.ff.net[1]
    return (
        is_untouched(block.norm1, nn.LayerNorm)
        and is_untouched(block.norm2, nn.LayerNorm)
        and is_untouched(block.attn1, SelfAttention)
        and is_plain_feed_forward(block.ff)
        and not (dropout.training and dropout.p > 0)
    )
