"""``round_tcq4`` on the processor: rows side by side on torch's threads.

The search itself is compiled by Numba: in plain torch a row's columns, one after the other, take a
thousand times as long.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from viditq.ops.unpack_tcq4.reference import BEFORE, window_values

__all__ = ["BACK", "round_tcq4"]

BACK = 32
"""Columns whose errors each path holds for itself, the one being rounded among them."""


def round_tcq4(targets: Tensor, root: Tensor | None) -> Tensor:
    """See :func:`viditq.ops.round_tcq4`."""
    # Loading Numba takes a second that only this needs.
    from viditq.ops.round_tcq4.viterbi import search

    own = targets.cpu().contiguous()
    root = torch.eye(own.shape[1]) if root is None else root.cpu()
    metric = root.contiguous().numpy(), root.T.contiguous().numpy()
    values = window_values().float().view(16, 16, 16).mT.reshape(16, -1).numpy()
    codes = torch.empty(own.shape, dtype=torch.int8)

    def part(rows: slice) -> None:
        first = 16 * BEFORE[0] + BEFORE[1]
        search(own[rows].numpy(), codes[rows].numpy(), *metric, values, first)

    count = max(1, min(torch.get_num_threads(), len(own)))
    bounds = [len(own) * i // count for i in range(count + 1)]
    spans = [slice(a, b) for a, b in pairwise(bounds)]
    if count == 1:
        part(spans[0])
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(part, spans))
    return codes.to(targets.device)
