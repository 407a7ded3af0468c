"""``unpack_tcq4`` in one pass: a program makes some of a row's weights from bytes side by side.

A byte and the one before it hold the windows of two weights, so nothing is looked up and a byte is
read twice, the second time from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import launch
from viditq.ops.unpack_tcq4 import reference

__all__ = ["kernel", "unpack_tcq4", "window_value"]

BYTES = 1024
"""Packed bytes to a program."""

_MULTIPLIER, _INCREMENT = tl.constexpr(reference.MULTIPLIER), tl.constexpr(reference.INCREMENT)
_FIRST_BYTE = tl.constexpr(reference.FIRST_BYTE)


@triton.jit
def kernel(packed, weight, FEATURES: tl.constexpr, BLOCKS: tl.constexpr, BYTES: tl.constexpr):
    row, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    size: tl.constexpr = (FEATURES + 1) // 2
    j = block * BYTES + tl.arange(0, BYTES)
    packed += row * size
    own = tl.load(packed + j, mask=j < size, other=0).to(tl.uint32)
    # other: before the row.
    before = tl.load(packed + j - 1, mask=(j > 0) & (j < size), other=_FIRST_BYTE).to(tl.uint32)
    even = (before & 15) << 8 | before & 0xF0 | own & 15
    odd = before >> 4 << 8 | (own & 15) << 4 | own >> 4
    k = block * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    values = tl.interleave(window_value(even).to(tl.int8), window_value(odd).to(tl.int8))
    tl.store(weight + row * FEATURES + k, values, mask=k < FEATURES)


@triton.jit
def window_value(window):
    """int32 of uint32: see :func:`viditq.ops.unpack_tcq4.reference.window_values`."""
    x = window * tl.full([], _MULTIPLIER, tl.uint32) + tl.full([], _INCREMENT, tl.uint32)
    pairs = (x & 0x00FF00FF) + (x >> 8 & 0x00FF00FF)
    total = (pairs & 0xFFFF) + (pairs >> 16)
    return total.to(tl.int32) - 510 >> 2


def unpack_tcq4(packed: Tensor, features: int) -> Tensor:
    """See :func:`viditq.ops.unpack_tcq4`."""
    packed = packed.contiguous()
    rows, size = packed.shape
    weight = torch.empty((rows, features), dtype=torch.int8, device=packed.device)
    if weight.numel():
        block = min(BYTES, triton.next_power_of_2(size))
        blocks = triton.cdiv(size, block)
        constants = (features, blocks, block)
        launch(kernel, rows * blocks, (packed, weight), (), constants, {"num_warps": 4})
    return weight
