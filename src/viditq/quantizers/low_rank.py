"""The low-rank branch: what a weight has most of, kept in bf16, so that less is left to round.

SVDQuant (arXiv 2411.05007, section 4.2): ``W = up · down + rest``, with the largest singular values
of the balanced weight in the branch. Its 16 · rank · (N + K) bits count as stored bits.
"""

import torch
from torch import Tensor

__all__ = ["split_low_rank"]


def split_low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best branch of this rank, and what is left of the weight beside its rounded factors.

    Args:
        weight: (N, K) fp32.
        rank: above 0; at most min(N, K) is used.

    Returns:
        down (r, K) bf16, up (N, r) bf16, rest (N, K) fp32.
    """
    rank = min(rank, *weight.shape)
    # The right singular vectors, from the smaller of the two products.
    if weight.shape[0] < weight.shape[1]:
        return _transposed(*split_low_rank(weight.T, rank))
    _, vectors = torch.linalg.eigh((weight.T @ weight).double())
    down = vectors[:, -rank:].T.to(torch.float32)
    up = weight @ down.T
    # Both factors at one level: bf16 has the same precision everywhere, but not the same range.
    level = up.norm(dim=0).clamp_min(1e-30).sqrt()
    down, up = (down * level[:, None]).to(torch.bfloat16), (up / level).to(torch.bfloat16)
    return down, up, weight - up.float() @ down.float()


def _transposed(down: Tensor, up: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return up.T.contiguous(), down.T.contiguous(), rest.T.contiguous()
