"""Rounding to trellis-coded numbers (``tcq4``): the best path along each row, errors fed back.

A weight's value is decided by three codes that follow each other in its row
(:mod:`viditq.ops.unpack_tcq4`), so codes cannot be chosen one by one. The Viterbi algorithm finds
the best sequence: of the paths that end in the same two codes only the cheapest can win, and 256
of them are followed along the row (trellis-coded quantization, Marcellin and Fischer, 1990; for
weights QTIP, arXiv 2406.11235). There are 4,096 values for a choice of 16 at each weight, which
comes closer to what 4 bits can tell of a normal distribution than any grid: errors have 0.45 times
the power of the best uniform grid's.

QTIP rounds blocks of columns together and makes up for their error behind the block. Here each path
carries its own errors, and each weight of each path is rounded for the target that GPTQ's
elimination moves to there (per-survivor processing): nothing of that feedback is lost. Errors
more than 32 columns back are taken from the best path, and paths that disagree with it about them
are given up.

The search runs on the processor, compiled by Numba, rows side by side on torch's threads. It
declines to run on a GPU, so weights of models there come over for it.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from viditq.ops import pack_int4, unpack_tcq4, window_values
from viditq.ops.unpack_tcq4 import BEFORE
from viditq.quantizers.metric import Metric

__all__ = ["best_codes", "round_trellis"]

FIRST = 16 * BEFORE[0] + BEFORE[1]

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
    w, (m, root, across) = weight.float().cpu(), metric.in_place
    scale = WIDER * w.square().mean(1).sqrt() / window_values().float().square().mean().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    codes, kept = torch.zeros(w.shape, dtype=torch.int8), scale
    best = torch.full((len(w),), torch.inf)
    for _ in range(PASSES):
        found = best_codes(w / scale[:, None], root, across)
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
    return codes.to(weight.device), kept.to(weight.device)


def best_codes(targets: Tensor, root: Tensor, across: Tensor) -> Tensor:
    """The search alone.

    Args:
        targets: (N, K) fp32 on the CPU, in steps of each row's scale.
        root: (K, K) fp32, upper triangular ``R``: an error ``e`` costs ``|e R|²``.
        across: (K, K) ``Rᵀ``, in memory of its own.

    Returns:
        (N, K) int8 in [-8, 7].
    """
    # Loading Numba takes a second that only this needs.
    from viditq.quantizers.viterbi import search

    codes = torch.empty(targets.shape, dtype=torch.int8)
    values = window_values().float().view(16, 16, 16).mT.reshape(16, -1).numpy()

    def part(rows: slice) -> None:
        own = targets[rows].numpy(), codes[rows].numpy()
        search(*own, root.numpy(), across.numpy(), values, FIRST)

    count = max(1, min(torch.get_num_threads(), len(targets)))
    bounds = [len(targets) * i // count for i in range(count + 1)]
    spans = [slice(a, b) for a, b in pairwise(bounds)]
    if count == 1:
        part(spans[0])
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(part, spans))
    return codes
