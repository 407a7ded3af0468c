"""``round_tcq4``: the trellis codes whose weights are nearest to given ones.

A weight's value is decided by three codes that follow each other in its row
(:mod:`viditq.ops.unpack_tcq4`), so codes cannot be chosen one by one. The Viterbi algorithm finds
the best sequence: of the paths that end in the same two codes only the cheapest can win, and 256
of them are followed along the row (trellis-coded quantization, Marcellin and Fischer, 1990; for
weights QTIP, arXiv 2406.11235).

With ``root`` an error is not lost where it was made: each path carries its own errors, and each
weight of each path is rounded for the target that GPTQ's elimination moves to there (per-survivor
processing). Errors more than 31 columns back are those of the best path, and paths that disagree
with it about them are given up.
"""

import torch
from torch import Tensor

from viditq.ops.registration import register_op
from viditq.ops.round_tcq4 import reference

__all__ = ["round_tcq4"]


def _shape(targets: Tensor, root: Tensor | None) -> Tensor:  # noqa: ARG001
    return torch.empty_like(targets, dtype=torch.int8)


_round_tcq4 = register_op(
    "round_tcq4(Tensor targets, Tensor? root) -> Tensor",
    reference.round_tcq4,
    _shape,
    kernels="viditq.ops.round_tcq4",
)


def round_tcq4(targets: Tensor, root: Tensor | None = None) -> Tensor:
    """Round rows that do not meet.

    Args:
        targets: (N, K) fp32, in steps of each row's scale.
        root: (K, K) fp32, upper triangular ``R``: an error ``e`` (K,) costs ``|e R|²``; without it
            ``|e|²``.

    Returns:
        (N, K) int8 codes in [-8, 7].
    """
    features = targets.shape[-1]
    if targets.ndim != 2 or targets.dtype != torch.float32:
        raise ValueError(f"targets must be (N, K) fp32, not {tuple(targets.shape)} {targets.dtype}")
    if root is not None and (root.shape != (features, features) or root.dtype != torch.float32):
        raise ValueError(
            f"root must be ({features}, {features}) fp32, not {tuple(root.shape)} {root.dtype}"
        )
    return _round_tcq4(targets, root)
