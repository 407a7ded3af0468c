"""What the implementations of ``norm_rotate`` share about its result."""

from torch import Tensor

__all__ = ["empty_result"]


def empty_result(x: Tensor, second: Tensor | None) -> Tensor:
    """Memory for (B, S, H, D) and (B, T, H, D), one after the other."""
    samples, tokens, *rest = x.shape
    return x.new_empty(samples, tokens + (0 if second is None else second.shape[1]), *rest)
