"""Trellis-coded weights by the definition; see :mod:`viditq.ops.unpack_tcq4`."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["BEFORE", "FIRST_BYTE", "INCREMENT", "MULTIPLIER", "unpack_tcq4", "window_values"]

BEFORE = (14, 12)
"""The codes that stand before each row."""

FIRST_BYTE = BEFORE[0] | BEFORE[1] << 4

MULTIPLIER, INCREMENT = 3432601039, 1231741627


@cache
def window_values(device: torch.device | None = None) -> Tensor:
    """(4096,) int8: what each window of three codes stands for, the latest in the lowest bits."""
    x = (torch.arange(4096) * MULTIPLIER + INCREMENT) & 0xFFFFFFFF
    total = (x & 0xFF) + (x >> 8 & 0xFF) + (x >> 16 & 0xFF) + (x >> 24)
    return ((total - 510) >> 2).to(torch.int8).to(device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """(65536,) int16, two int8 each: the weights of a byte, which is in the lower bits of the
    index, and the one before it."""
    both = torch.arange(65536, device=device)
    before, own = both >> 8, both & 0xFF
    even = (before & 0xF) << 8 | before & 0xF0 | own & 0xF
    odd = before >> 4 << 8 | (own & 0xF) << 4 | own >> 4
    return window_values(device)[torch.stack([even, odd], -1)].view(torch.int16).flatten()


def unpack_tcq4(packed: Tensor, features: int) -> Tensor:
    """(N, ⌈K/2⌉) uint8 -> (N, K) int8."""
    own = packed.to(torch.int32)
    before = torch.nn.functional.pad(own[:, :-1], (1, 0), value=FIRST_BYTE)
    weights = _pairs(packed.device).index_select(0, (before << 8 | own).flatten()).view(torch.int8)
    return weights.view(len(packed), 2 * packed.shape[1])[:, :features].contiguous()
