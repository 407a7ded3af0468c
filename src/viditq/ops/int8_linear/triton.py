"""``int8_linear`` in Triton, for every CUDA chip with int8 tensor cores (sm_75 and later).

One program makes one tile of the result: the integer product over K in int32, then the scales,
bias, gate and residual in fp32, and one rounding to the result's dtype. Tiles are numbered so that
those running at the same time share rows of ``x`` and ``weight`` in L2. Any M, N and K: edges are
masked, nothing is padded or copied. The sum is exact, so a result never depends on the tile's size.

It declines to hide its epilogue and to unpack; see ``hopper`` and ``int4_linear``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.int8_linear.tiles import choose_tile
from viditq.ops.launch import contiguous, dense, launch, multiprocessors

__all__ = ["int8_linear", "int8_linear_kernel"]

BLOCK_K = 128
GROUP = 8
"""Tile rows that are walked down together before the next column of tiles."""


@triton.jit
def int8_linear_kernel(
    x,
    x_scale,
    weight,
    scale,
    bias,
    gate,
    residual,
    out,
    M,
    N,
    K,
    gate_rows,
    gate_stride,
    ONE_SCALE: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Which tile: down GROUP rows of tiles, then one column on.
    columns = tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (GROUP * columns)
    rows = tl.minimum(tl.cdiv(M, BLOCK_M) - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * columns)
    m = (group * GROUP + inside % rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (inside // rows) * BLOCK_N + tl.arange(0, BLOCK_N)

    # Beyond the edge a valid row is read again; its results are not stored.
    k = tl.arange(0, BLOCK_K)
    x_at = x + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    weight_at = weight + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        if WHOLE_K:
            a, b = tl.load(x_at), tl.load(weight_at)
        else:
            left = K - start
            a = tl.load(x_at, mask=k[None, :] < left, other=0)
            b = tl.load(weight_at, mask=k[:, None] < left, other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        x_at += BLOCK_K
        weight_at += BLOCK_K

    in_m, in_n = m < M, n < N
    if ONE_SCALE:
        y = total.to(tl.float32) * tl.load(x_scale)
    else:
        y = total.to(tl.float32) * tl.load(x_scale + m, mask=in_m, other=0.0)[:, None]
    y = y * tl.load(scale + n, mask=in_n, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    mask = in_m[:, None] & in_n[None, :]
    if gate is not None:
        at = gate + (m // gate_rows).to(tl.int64)[:, None] * gate_stride + n[None, :]
        y *= tl.load(at, mask=mask, other=0.0).to(tl.float32)
    offsets = m.to(tl.int64)[:, None] * N + n[None, :]
    if residual is not None:
        y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.int8_linear` -> (M, N) ``dtype``."""
    m, k = x.shape
    n = weight.shape[0]
    gate = None if gate is None else dense(gate)
    out = torch.empty(m, n, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    plain = gate is None and residual is None
    rows, columns, warps, stages = choose_tile(m, n, multiprocessors(x.device), plain)
    operands = (x, x_scale, weight, scale, bias)
    launch(
        int8_linear_kernel,
        triton.cdiv(m, rows) * triton.cdiv(n, columns),
        (*map(contiguous, operands), gate, contiguous(residual), out),
        (m, n, k, 1 if gate is None else m // gate.shape[0], 0 if gate is None else gate.stride(0)),
        (x_scale.ndim == 0, k % BLOCK_K == 0, rows, columns, BLOCK_K, GROUP),
        {"num_warps": warps, "num_stages": stages},
    )
    return out
