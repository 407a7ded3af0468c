"""``norm_rotate`` in one pass over the input.

A program holds all heads of one token in registers, as (heads, features), each rounded up to a
power of two. The two of a pair are in one thread, and cosines and sines are loaded once for all
heads that share them, so that nothing but sums goes from thread to thread. Streams
are written one after the other into one tensor, each by a launch of its own.

Declined: other dtypes than bf16, fp16 and fp32 and tokens that no registers hold
(:data:`LARGEST_TOKEN`), which run the reference.
"""
# What triton.jit decorates is Triton's language; pyright takes it for Python.
# pyright: reportAttributeAccessIssue=false

from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.launch import contiguous, launch
from viditq.ops.norm_rotate import reference
from viditq.ops.norm_rotate.signature import Part, empty_result, parts
from viditq.ops.rows import FLOATS
from viditq.ops.tiling import LANES

__all__ = ["blocks", "kernel", "norm_rotate"]

LARGEST_TOKEN = 32768
"""Features of all heads, each number rounded up to a power of two."""

PER_THREAD = 16
"""Features of a token, in one thread."""


@triton.jit
def kernel(
    x,
    weight,
    bias,
    cos,
    sin,
    out,
    eps,
    tokens,
    x_sample,
    x_token,
    out_sample,
    out_start,
    table_sample,
    table_token,
    table_head,
    H: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    CENTRED: tl.constexpr,
    ACROSS: tl.constexpr,
    PER_HEAD: tl.constexpr,
    PITCH: tl.constexpr,
):
    sample = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, WIDTH)[None, :]
    offsets, inside = head * D + column, (head < H) & (column < D)
    # All of it is asked for before any of it is needed.
    y = tl.load(x + sample * x_sample + token * x_token + offsets, mask=inside, other=0.0)
    of_norm, in_norm = (offsets, inside) if ACROSS else (column, column < D)
    if weight is not None:
        factor = tl.load(weight + of_norm, mask=in_norm)
    if bias is not None:
        shift = tl.load(bias + of_norm, mask=in_norm)
    if cos is not None:
        turns = sample * table_sample + token * table_token
        if PER_HEAD:
            # As wide as the values, so that they come to the threads that have those.
            turns += head * table_head + column // 2 * PITCH
            c, _ = tl.split(tl.load(cos + turns, mask=inside).reshape(HEADS, WIDTH // 2, 2))
            s, _ = tl.split(tl.load(sin + turns, mask=inside).reshape(HEADS, WIDTH // 2, 2))
        else:
            pair = tl.arange(0, WIDTH // 2)[None, :]
            c = tl.load(cos + turns + pair * PITCH, mask=pair < D // 2)
            s = tl.load(sin + turns + pair * PITCH, mask=pair < D // 2)
        c, s = c.to(tl.float32), s.to(tl.float32)

    y = y.to(tl.float32)
    if CENTRED:
        y = tl.where(inside, y - _mean(y, H, D, ACROSS), 0.0)
    if NORM:
        y *= tl.div_rn(1.0, tl.sqrt_rn(_mean(y * y, H, D, ACROSS) + eps))
    if weight is not None:
        y *= factor.to(tl.float32)
    if bias is not None:
        y += shift.to(tl.float32)
    if cos is not None:
        even, odd = tl.split(y.reshape(HEADS, WIDTH // 2, 2))
        y = tl.join(even * c - odd * s, odd * c + even * s).reshape(HEADS, WIDTH)
    out += sample * out_sample + out_start + token * H * D
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _mean(y, H: tl.constexpr, D: tl.constexpr, ACROSS: tl.constexpr):
    total = tl.sum(y, 1, keep_dims=True)
    if ACROSS:
        total = tl.sum(total, 0, keep_dims=True)
    return tl.div_rn(total, 1.0 * (H * D if ACROSS else D))


def norm_rotate(*arguments: Any) -> Tensor:
    """(B, S, H, D) and (B, T, H, D) -> (B, S + T, H, D); see :func:`viditq.ops.norm_rotate`."""
    given, across = parts(arguments)
    x = given[0].x
    heads, width, warps = blocks(*x.shape[2:])
    if x.dtype not in FLOATS or heads * width > LARGEST_TOKEN:
        return reference.norm_rotate(*arguments)
    out, start = empty_result(given), 0
    for part in given:
        _write(out, start, (heads, width), {"num_warps": warps}, part, across)
        start += part.x.shape[1] * out.stride(1)
    return out


@cache
def blocks(heads: int, features: int) -> tuple[int, int, int]:
    """Heads and features, rounded up to powers of two, and the warps of a program for them."""
    heads, features = (1 << max(0, size - 1).bit_length() for size in (heads, features))
    return heads, features, min(16, max(1, heads * features // (PER_THREAD * LANES)))


def _write(
    out: Tensor,
    start: int,
    block: tuple[int, int],
    options: dict[str, int],
    part: Part,
    across: bool,
) -> None:
    """A stream into each sample of ``out``, ``start`` elements from its start.

    Heads of a token must be side by side; else they are copied.
    """
    x, weight, bias, eps, centred, cos, sin = part
    if not x.numel():
        return
    samples, tokens, heads, features = x.shape
    if x.stride(3) != 1 or (x.stride(2) != features and heads > 1):
        x = x.contiguous()
    table, pitch = (0, 0, 0), 1
    if cos is not None and sin is not None:
        if cos.stride() != sin.stride():
            cos, sin = cos.contiguous(), sin.contiguous()
        *table, pitch = (
            0 if size == 1 else stride for size, stride in zip(cos.shape, cos.stride(), strict=True)
        )
    launch(
        kernel,
        samples * tokens,
        (x, contiguous(weight), contiguous(bias), cos, sin, out),
        (eps or 0.0, tokens, x.stride(0), x.stride(1), out.stride(0), start, *table),
        (heads, features, *block, eps is not None, centred, across, table[2] != 0, pitch),
        options,
    )
