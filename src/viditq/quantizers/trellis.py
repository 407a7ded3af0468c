"""Rounding to trellis-coded numbers (``tcq4``): the best path along each row, errors fed back.

There are 4,096 values for a choice of 16 at each weight, which comes closer to what 4 bits can tell
of a normal distribution than any grid: errors have 0.45 times the power of the best uniform grid's.
The search is an op (:mod:`viditq.ops.round_tcq4`); what is here is the scale around it.

QTIP (arXiv 2406.11235) rounds blocks of columns together and makes up for their error behind the
block. Here nothing of GPTQ's feedback is lost: every weight of every path is rounded for its own
target.
"""

import torch
from torch import Tensor

from viditq.ops import pack_int4, round_tcq4, unpack_tcq4, window_values
from viditq.quantizers.metric import Metric

__all__ = ["round_trellis"]

WIDER = 1.15
"""How much wider than weights the values lie at first: tails cost more than the middle gains."""

PASSES = 2
"""Searches, each with the scale that fits what the one before found; the better one counts."""


def round_trellis(weight: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Round rows that cost ``e M eᵀ`` each.

    Args:
        weight: (N, K) float.
        metric: of K entries.

    Returns:
        codes (N, K) int8 in [-8, 7], and the scale (N,) fp32 that fits them.
    """
    w, (m, root) = weight.float(), metric.in_place
    scale = WIDER * w.square().mean(1).sqrt() / window_values().float().square().mean().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    codes, kept = torch.zeros(w.shape, dtype=torch.int8, device=w.device), scale
    best = torch.full_like(scale, torch.inf)
    for _ in range(PASSES):
        found = round_tcq4(w / scale[:, None], root)
        values = unpack_tcq4(pack_int4(found), w.shape[1]).float()
        moved = values @ m
        top, bottom = (moved * w).sum(1), (moved * values).sum(1)
        scale = torch.where(torch.minimum(top, bottom) > 0, top / bottom, scale)
        error = w - scale[:, None] * values
        cost = ((error @ m) * error).sum(1)
        better = cost < best
        best = torch.where(better, cost, best)
        codes = torch.where(better[:, None], found, codes)
        kept = torch.where(better, scale, kept)
    return codes, kept
