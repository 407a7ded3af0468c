"""``attention`` on Hopper (sm_90): what its kernel takes, and its launch.

How it works, is in ``hopper_kernel``. Declined, and left to torch: heads of another width than 72,
fp32, few queries or keys, and tensors that TMA cannot address.
"""

from functools import lru_cache
from math import e, log2

import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from viditq.ops.attention import gains_by_kernel
from viditq.ops.attention.hopper_kernel import KEYS, LAYOUTS, QUERIES, attention_kernel
from viditq.ops.launch import Address, Described, contiguous, launch, multiprocessors
from viditq.ops.rows import FLOATS

__all__ = ["STAGES", "attention", "attention_kernel", "boxes", "takes"]

STAGES = 6
"""Steps of keys and values in shared memory."""

WARP_GROUPS = 4


def boxes() -> list[tuple[int, int]]:
    """Tokens and features of each descriptor's box: of q, k and v in two parts each, of the
    result's first part."""
    return [
        (QUERIES, 64),
        (QUERIES, 16),
        (KEYS, 64),
        (KEYS, 16),
        (KEYS, 64),
        (KEYS, 8),
        (QUERIES, 64),
    ]


def takes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the kernel computes these: enough tokens to be faster, rows that TMA can address."""
    return (
        gains_by_kernel(q, k)
        and q.shape[0] * q.shape[2] > 0
        and (bias is None or bias.dtype in FLOATS)
        and all(_is_addressable(each) for each in (q, k, v))
    )


def _is_addressable(x: Tensor) -> bool:
    """Whether features lie side by side, and everything else begins at multiples of 16 bytes."""
    *strides, last = x.stride()
    return last == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in strides)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Shapes as in :func:`viditq.ops.attention` -> (B, S, H, D), dense; see :func:`takes`."""
    samples, queries, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tiles = -(-queries // (QUERIES * WARP_GROUPS)) * heads * samples
    launch(
        attention_kernel,
        min(tiles, multiprocessors(q.device)),
        (out, contiguous(bias)),
        (queries, k.shape[1], heads, tiles, log2(e) / width**0.5),
        (STAGES,),
        {"num_warps": 4},
        described=_described(
            q.dtype, *((t.data_ptr(), t.shape, t.stride()) for t in (q, k, v, out))
        ),
    )
    return out


Where = tuple[int, torch.Size, tuple[int, ...]]
"""Address, shape and strides of a tensor."""


# To make descriptors takes as long as a launch, and the same addresses come again and again.
@lru_cache(4096)
def _described(dtype: torch.dtype, q: Where, k: Where, v: Where, out: Where) -> Described:
    """Of tensors (B, tokens, H, D), in boxes of one head's tokens; loads find zeros beyond D."""
    tensors = (q, q, k, k, v, v, out)
    made = [
        TensorDescriptor(
            Address(pointer, dtype),
            list(shape),
            list(strides),
            [1, tokens, 1, width],
            LAYOUTS[width],
        )
        for (pointer, shape, strides), (tokens, width) in zip(tensors, boxes(), strict=True)
    ]
    return Described(*made)
