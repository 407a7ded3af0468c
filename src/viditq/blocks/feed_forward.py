"""diffusers' ``FeedForward`` with GELU, as two products around one op.

Declined: other activations, and hooks on what is passed by;
:func:`is_plain_feed_forward` says so, and the block then takes its original forward.
"""

from typing import Any

from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from viditq.blocks.inputs import Gelu, Input
from viditq.blocks.products import finish, is_untouched, read

__all__ = ["feed", "is_plain_feed_forward"]


def feed(ff: Any, x: Input, residual: Tensor, gate: Tensor | None = None) -> Tensor:
    """``gate · ff(x) + residual``: see :func:`~viditq.blocks.products.finish`."""
    up, _, down = ff.net
    (hidden,) = read(x, [up.proj])
    return finish(Gelu(hidden, up.approximate), down, residual, gate)


def is_plain_feed_forward(ff: Any, *, final_dropout: bool = False) -> bool:
    """Whether ``ff`` is GELU between two layers, and as diffusers made it.

    Args:
        ff: of any class.
        final_dropout: there must be a dropout behind the last layer; the block sees that it sleeps.
    """
    if not is_untouched(ff, FeedForward):
        return False
    up, dropout, _, *others = ff.net
    return (
        is_untouched(up, GELU)
        and is_untouched(dropout, nn.Dropout)
        and len(others) == final_dropout
        and all(is_untouched(other, nn.Dropout) for other in others)
    )
