"""The definition of ``round_columns`` in plain torch, one column after the other."""

import torch
from torch import Tensor

__all__ = ["round_columns"]


def round_columns(
    target: Tensor, factor: Tensor, scale: Tensor, old: Tensor | None, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """See :func:`viditq.ops.round_columns`."""
    left, codes, moved = target.clone(), torch.empty_like(target), torch.empty_like(target)
    for j, row in enumerate(left):
        s = scale if scale.ndim == 1 else scale[j]
        if old is None:
            codes[j] = (row / s).round_().clamp_(low, high)
            moved[j] = (row - s * codes[j]) / factor[j, j]
        else:
            codes[j] = (row / (factor[j, j] * s)).add_(old[j]).round_().clamp_(low, high)
            moved[j] = s * (codes[j] - old[j])
        left[j + 1 :].addr_(factor[j, j + 1 :], moved[j], alpha=-1)
    return codes, moved
