"""``round_tcq4`` with one program to a row, its 256 paths side by side.

What a path has behind it is held as its last forty codes, five words of 32 bits to a state, not as
errors: values of windows are computed, so 31 errors of 256 paths cost less to make anew at every
column than to move from state to state. What all paths add at a column, whichever codes they have,
is worked out before: the targets' part is a product of matrices.

The 4,096 windows stay in registers. A window's earliest code is put into the lowest bits of its
cost: the smaller of two floats that are not negative is the smaller of two integers, and brings
along where it came from.

A code is decided on once 31 others are behind it: as the best path has it, and paths that disagree
are given up. What its error adds at the columns to come is summed up by the program within a block
of columns, and by a product of matrices between blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import launch
from viditq.ops.round_tcq4.reference import BACK
from viditq.ops.unpack_tcq4.reference import BEFORE
from viditq.ops.unpack_tcq4.triton import window_value

__all__ = ["kernel", "round_tcq4"]

BLOCK = 128
"""Columns to a launch."""

WORDS = 5
"""Of eight codes each, of every path."""

_FIRST = tl.constexpr(16 * BEFORE[0] + BEFORE[1])
_BACK = tl.constexpr(BACK)
_NEVER = tl.constexpr(1e30)


@triton.jit(do_not_specialize=["K", "start", "end"])
def kernel(
    targets, across, moves, settled, codes, costs, paths, K, start, end,
    FEEDBACK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    a, b = tl.arange(0, 16)[:, None, None], tl.arange(0, 16)[None, :, None]
    c = tl.arange(0, 16)[None, None, :]
    values = window_value((a << 8 | b << 4 | c).to(tl.uint32)).to(tl.float32)
    # A state is the last code but one and the last, as 16 a + b.
    state = tl.arange(0, 256)
    targets, settled, codes = targets + row * K, settled + row * K, codes + row * K
    costs, paths = costs + row * 256 + state, paths + row * 1280 + state
    if start == 0:
        cost = tl.where(state == _FIRST, 0.0, _NEVER)
        h0 = state.to(tl.uint32)
        h1, h2, h3, h4 = h0 * 0, h0 * 0, h0 * 0, h0 * 0
    else:
        cost, h0, h1 = tl.load(costs), tl.load(paths), tl.load(paths + 256)
        h2, h3, h4 = tl.load(paths + 512), tl.load(paths + 768), tl.load(paths + 1024)
    place = tl.arange(0, BLOCK)
    first = start - _BACK + 1  # the first column that is decided on here
    errors = tl.zeros([BLOCK], tl.float32)
    for j in range(end - start):
        moved = tl.full([256], 0.0, tl.float32) + tl.load(moves + row * BLOCK + j)
        own = 1.0
        if FEEDBACK:
            others = across + j * (BLOCK + _BACK)  # from the column ``first`` on
            weight = others + j + _BACK - 1
            own = tl.load(weight)
            moved += tl.sum(errors * tl.load(others + place), axis=0)
            for age in tl.static_range(_BACK - 1):
                moved -= tl.load(weight - 1 - age) * _value(h0, h1, h2, h3, h4, age)
        miss = tl.reshape(moved, (16, 16))[:, :, None] - own * values
        total = miss * miss + tl.reshape(cost, (16, 16))[:, :, None]
        best = tl.min((total.to(tl.int32, bitcast=True) & -16) | a, axis=0)
        best = tl.reshape(best, (256,))  # as 16 b + c
        came = (best & 15) * 16 + (state >> 4)
        cost = (best & -16).to(tl.float32, bitcast=True)
        h4 = tl.gather(h4, came, 0) << 4
        h3 = tl.gather(h3, came, 0)
        h4, h3 = h4 | h3 >> 28, h3 << 4
        h2 = tl.gather(h2, came, 0)
        h3, h2 = h3 | h2 >> 28, h2 << 4
        h1 = tl.gather(h1, came, 0)
        h2, h1 = h2 | h1 >> 28, h1 << 4
        h0 = tl.gather(h0, came, 0)
        h1, h0 = h1 | h0 >> 28, h0 << 4 | (state & 15).to(tl.uint32)
        least, winner = tl.min(cost, axis=0, return_indices=True)
        cost -= least
        old = first + j
        if old >= 0:
            code = h3 >> 28
            chosen = tl.sum(tl.where(state == winner, code, 0), axis=0)
            cost = tl.where(code == chosen, cost, _NEVER)
            tl.store(codes + old, _signed(chosen))
            if FEEDBACK:
                value = _value(h0, h1, h2, h3, h4, _BACK - 1)
                value = tl.sum(tl.where(state == winner, value, 0.0), axis=0)
                error = tl.load(targets + old) - value
                errors = tl.where(place == j, error, errors)
                tl.store(settled + old, error)
    if end < K:
        tl.store(costs, cost)
        tl.store(paths, h0)
        tl.store(paths + 256, h1)
        tl.store(paths + 512, h2)
        tl.store(paths + 768, h3)
        tl.store(paths + 1024, h4)
    else:
        winner = state == tl.argmin(cost, axis=0)
        w0, w1 = tl.sum(tl.where(winner, h0, 0), axis=0), tl.sum(tl.where(winner, h1, 0), axis=0)
        w2, w3 = tl.sum(tl.where(winner, h2, 0), axis=0), tl.sum(tl.where(winner, h3, 0), axis=0)
        age = tl.arange(0, _BACK)
        word = tl.where(age < 16, tl.where(age < 8, w0, w1), tl.where(age < 24, w2, w3))
        left = (age < _BACK - 1) & (age < K)
        tl.store(codes + K - 1 - age, _signed(word >> 4 * (age % 8) & 15), mask=left)


@triton.jit
def _value(h0, h1, h2, h3, h4, AGE: tl.constexpr):
    """fp32 value of the weight that came so many columns ago."""
    word: tl.constexpr = AGE // 8
    low = h0 if word == 0 else h1 if word == 1 else h2 if word == 2 else h3
    high = h1 if word == 0 else h2 if word == 1 else h3 if word == 2 else h4
    shift: tl.constexpr = 4 * (AGE % 8)
    window = low >> shift
    if shift > 20:
        window |= high << 32 - shift
    return window_value(window & 0xFFF).to(tl.float32)


@triton.jit
def _signed(code):
    return ((code.to(tl.int32) ^ 8) - 8).to(tl.int8)


def round_tcq4(targets: Tensor, root: Tensor | None) -> Tensor:
    """See :func:`viditq.ops.round_tcq4`."""
    targets = targets.contiguous()
    rows, features = targets.shape
    codes = torch.empty((rows, features), dtype=torch.int8, device=targets.device)
    if not codes.numel():
        return codes
    costs = targets.new_empty((rows, 256))
    paths = torch.empty((rows, WORDS, 256), dtype=torch.uint32, device=targets.device)
    across = settled = targets
    if root is not None:
        # What each of a block's columns gets of the errors before it, from 31 before the block on.
        across, settled = targets.new_zeros(BLOCK, BLOCK + BACK), torch.empty_like(targets)
    for start in range(0, features, BLOCK):
        end = min(features, start + BLOCK)
        moves = targets.new_empty((rows, BLOCK))
        own = moves[:, : end - start]
        if root is None:
            own.copy_(targets[:, start:end])
        else:
            low = max(0, start - BACK + 1)
            factor = root[low:end, start:end]
            near = factor.triu(low - start).tril(low - start + BACK - 1)  # at most 31 columns back
            torch.matmul(targets[:, low:end], near, out=own)
            own += settled[:, :low] @ root[:low, start:end]
            across[: end - start, BACK - 1 - start + low : BACK - 1 + end - start] = factor.T
        tensors = (targets, across, moves, settled, codes, costs, paths)
        numbers, constants = (features, start, end), (root is not None, BLOCK)
        launch(kernel, rows, tensors, numbers, constants, {"num_warps": 8})
    return codes
