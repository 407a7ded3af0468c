"""What the implementations of ``norm_rotate`` share about its arguments and its result."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Part", "empty_result", "parts"]


class Part(NamedTuple):
    """The registered op's arguments for one stream: :class:`viditq.ops.Stream`, flat."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float | None
    centred: bool
    cos: Tensor | None
    sin: Tensor | None


def parts(arguments: Sequence[Any]) -> tuple[list[Part], bool]:
    """The one or two streams among the registered op's arguments, and ``across`` between them."""
    count = len(Part._fields)
    first, across, second = arguments[:count], arguments[count], arguments[count + 1 :]
    return [Part(*each) for each in (first, second) if each[0] is not None], across


def empty_result(given: Sequence[Part]) -> Tensor:
    """Memory for (B, S, H, D) and (B, T, H, D), one after the other."""
    samples, _, *rest = given[0].x.shape
    return given[0].x.new_empty(samples, sum(part.x.shape[1] for part in given), *rest)
