"""``int8_linear`` for Hopper (sm_90): TMA, asynchronous ``wgmma``, and an epilogue that is hidden.

One program per multiprocessor walks over tiles of the result. A producer warp fills a ring of
stages, and two warp-groups multiply.

A tile is 128 rows by two halves of columns, each half with accumulators of its own. The second half
runs ``SKEW`` stages behind the first. So when the first half is done, the tensor cores still have
the second's last stages to multiply while the first is scaled and stored, and the second is stored
while the next tile's first half has begun: the epilogue takes no tensor-core time. (At K = 1152 it
would be a tenth of it. Two warp-groups on alternating tiles, CUTLASS' ping-pong, hide it as well,
but each then loads a tile alone, for half the work per byte.)

Stage ``i`` holds what is multiplied together: rows of ``x`` and of the first half's weight at step
``i``, and of the second half's at step ``i - SKEW``. Only ``x`` stays for the second half, so its
ring is longer.

Full rounds of tiles leave a remainder in which not all multiprocessors would have work; it is cut
into halves, which share out more evenly.

The accumulators are int32 and exact; scales, bias, gate and residual follow in fp32 in the order of
the reference. The kernel declines K below 384 or not a multiple of 16, and tensors that TMA cannot
address (see :func:`takes`); Triton's kernel takes those.
"""

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from viditq.ops.int8_linear.tiles import HOPPER_ROWS, share_out
from viditq.ops.launch import dense, multiprocessors

__all__ = ["int8_linear", "int8_linear_kernel", "layout", "takes"]

BLOCK_M = HOPPER_ROWS
BLOCK_K = 128
STAGES = 4
SKEW = 2
GROUP = 8
"""Tile rows that are walked down together before the next column of tiles."""


@gluon.jit
def _corner(number, tiles_m, tiles_n, GROUP: gl.constexpr):
    """Row and column of a tile, counted in tiles: down GROUP rows, then one column on."""
    group = number // (GROUP * tiles_n)
    rows = gl.minimum(tiles_m - group * GROUP, GROUP)
    inside = number % (GROUP * tiles_n)
    return group * GROUP + inside % rows, inside // rows


@gluon.jit
def _produce(
    x, first, second, rings, barriers, shape, shares, SKEW: gl.constexpr, GROUP: gl.constexpr
):
    """The producer warp: the stages of all tiles of this program, in order."""
    M, N, K = shape
    wide, narrow = shares
    x_ring, first_ring, second_ring = rings
    full, empty = barriers
    X_STAGES: gl.constexpr = x_ring.shape[0]
    STAGES: gl.constexpr = first_ring.shape[0]
    BLOCK_M: gl.constexpr = x.block_type.shape[0]
    BLOCK_K: gl.constexpr = x.block_type.shape[1]
    FIRST: gl.constexpr = first.block_type.shape[0]
    WIDTH: gl.constexpr = FIRST + second.block_type.shape[0]
    X_BYTES: gl.constexpr = x.block_type.nbytes
    FIRST_BYTES: gl.constexpr = first.block_type.nbytes
    SECOND_BYTES: gl.constexpr = second.block_type.nbytes
    tiles_m, tiles_n = gl.cdiv(M, BLOCK_M), gl.cdiv(N, WIDTH)
    steps = gl.cdiv(K, BLOCK_K)

    i = 0
    behind = 0  # column of the tile before, whose second half is still to come
    for number in range(gl.program_id(0), wide, gl.num_programs(0)):
        row, column = _corner(number, tiles_m, tiles_n, GROUP)
        m, n = row * BLOCK_M, column * WIDTH
        for step in range(steps):
            # The very first stages load something for the second half, which nobody reads.
            late = step < SKEW
            second_n = gl.where(late, behind, n) + FIRST
            second_step = gl.where(late, steps + step - SKEW, step - SKEW)
            at = i % STAGES
            ready = full.index(at)
            mbarrier.wait(empty.index(at), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, X_BYTES + FIRST_BYTES + SECOND_BYTES)
            k = step * BLOCK_K
            tma.async_copy_global_to_shared(x, [m, k], ready, x_ring.index(i % X_STAGES))
            tma.async_copy_global_to_shared(first, [n, k], ready, first_ring.index(at))
            k = second_step * BLOCK_K
            tma.async_copy_global_to_shared(second, [second_n, k], ready, second_ring.index(at))
            i += 1
        behind = n
    if i > 0:
        for step in range(steps - SKEW, steps):
            at = i % STAGES
            ready = full.index(at)
            mbarrier.wait(empty.index(at), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, SECOND_BYTES)
            k = step * BLOCK_K
            tma.async_copy_global_to_shared(
                second, [behind + FIRST, k], ready, second_ring.index(at)
            )
            i += 1
    for number in range(gl.program_id(0), narrow, gl.num_programs(0)):
        row, column = _corner(wide + number // 2, tiles_m, tiles_n, GROUP)
        m, n = row * BLOCK_M, column * WIDTH + (number % 2) * FIRST
        for step in range(steps):
            at = i % STAGES
            ready = full.index(at)
            mbarrier.wait(empty.index(at), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, X_BYTES + FIRST_BYTES)
            k = step * BLOCK_K
            tma.async_copy_global_to_shared(x, [m, k], ready, x_ring.index(i % X_STAGES))
            tma.async_copy_global_to_shared(first, [n, k], ready, first_ring.index(at))
            i += 1


@gluon.jit
def _multiply(total, x_ring, weight_ring, x_step, i, use_acc):
    """Start ``total += x · weightᵀ`` on one stage of each ring."""
    x = x_ring.index(x_step % x_ring.shape[0])
    weight = weight_ring.index(i % weight_ring.shape[0]).permute((1, 0))
    return warpgroup_mma(x, weight, total, use_acc=use_acc, is_async=True)


@gluon.jit
def _wait_full(full, i):
    STAGES: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(i % STAGES), (i // STAGES) & 1)


@gluon.jit
def _release(empty, i):
    mbarrier.arrive(empty.index(i % empty.shape[0]), count=1)


@gluon.jit
def _finish(total, m, n, tensors, shape, ONE_SCALE: gl.constexpr, ONE_GATE: gl.constexpr):
    """Scale, bias, gate, residual, and the store of one half of a tile at (m, n).

    Stores go from the accumulators' own layout straight to memory: at two bytes per 2·K operations
    they are too few to be worth a way through shared memory.
    """
    M, N, _, gate_rows, gate_stride = shape
    x_scale, scale, bias, gate, residual, out = tensors
    layout: gl.constexpr = total.type.layout
    rows = m + gl.arange(0, total.shape[0], gl.SliceLayout(1, layout))
    columns = n + gl.arange(0, total.shape[1], gl.SliceLayout(0, layout))
    in_m, in_n = rows < M, columns < N
    y = total.to(gl.float32)
    if ONE_SCALE:
        y = y * gl.load(x_scale)
    else:
        y = y * gl.load(x_scale + rows, mask=in_m, other=0.0)[:, None]
    y = y * gl.load(scale + columns, mask=in_n, other=0.0)[None, :]
    if bias is not None:
        y = y + gl.load(bias + columns, mask=in_n, other=0.0).to(gl.float32)[None, :]
    mask = in_m[:, None] & in_n[None, :]
    if gate is not None and ONE_GATE:
        at = gate + (m // gate_rows).to(gl.int64) * gate_stride + columns
        y = y * gl.load(at, mask=in_n, other=0.0).to(gl.float32)[None, :]
    elif gate is not None:
        at = (rows // gate_rows).to(gl.int64)[:, None] * gate_stride + columns[None, :]
        y = y * gl.load(gate + at, mask=mask, other=0.0).to(gl.float32)
    at = rows.to(gl.int64)[:, None] * N + columns[None, :]
    if residual is not None:
        y = y + gl.load(residual + at, mask=mask, other=0.0).to(gl.float32)
    gl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@gluon.jit
def _whole_tile(
    first,
    second,
    i,
    m,
    n,
    rings,
    barriers,
    tensors,
    shape,
    SKEW: gl.constexpr,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
    LAST: gl.constexpr,
):
    """One tile at (m, n), whose first ``SKEW`` products of the first half are under way, from stage
    ``i`` on; unless it is the last, those of the next tile are under way in the end."""
    x_ring, first_ring, second_ring = rings
    full, empty = barriers
    steps = gl.cdiv(shape[2], x_ring.shape[2])
    # The first step for both halves; the rest are alike.
    j = i + SKEW
    _wait_full(full, j)
    first = _multiply(first, x_ring, first_ring, j, j, True)
    second = _multiply(second, x_ring, second_ring, i, j, False)
    first, second = warpgroup_mma_wait(2, deps=(first, second))
    for before in gl.static_range(SKEW):
        _release(empty, i + before)
    for step in range(SKEW + 1, steps):
        j = i + step
        _wait_full(full, j)
        first = _multiply(first, x_ring, first_ring, j, j, True)
        second = _multiply(second, x_ring, second_ring, j - SKEW, j, True)
        # All but these two products are done.
        first, second = warpgroup_mma_wait(2, deps=(first, second))
        _release(empty, j - 1)
    i += steps
    for ahead in gl.static_range(SKEW):
        _wait_full(full, i + ahead)
        second = _multiply(second, x_ring, second_ring, i + ahead - SKEW, i + ahead, True)
    first, second = warpgroup_mma_wait(SKEW, deps=(first, second))
    _release(empty, i - 1)
    _finish(first, m, n, tensors, shape, ONE_SCALE, ONE_GATE)
    if LAST:
        second = warpgroup_mma_wait(0, deps=(second,))
        for ahead in gl.static_range(SKEW):
            _release(empty, i + ahead)
    else:
        for ahead in gl.static_range(SKEW):
            first = _multiply(first, x_ring, first_ring, i + ahead, i + ahead, ahead > 0)
        first, second = warpgroup_mma_wait(SKEW, deps=(first, second))
    _finish(second, m, n + first_ring.shape[1], tensors, shape, ONE_SCALE, ONE_GATE)
    return first, second


@gluon.jit
def _consume(
    rings,
    barriers,
    tensors,
    shape,
    shares,
    SKEW: gl.constexpr,
    GROUP: gl.constexpr,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
):
    """The two warp-groups that multiply and store."""
    M, N, K, _, _ = shape
    wide, narrow = shares
    x_ring, first_ring, second_ring = rings
    full, empty = barriers
    BLOCK_M: gl.constexpr = x_ring.shape[1]
    FIRST: gl.constexpr = first_ring.shape[1]
    SECOND: gl.constexpr = second_ring.shape[1]
    WIDTH: gl.constexpr = FIRST + SECOND
    first_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, FIRST, 32]
    )
    second_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, SECOND, 32]
    )
    tiles_m, tiles_n = gl.cdiv(M, BLOCK_M), gl.cdiv(N, WIDTH)
    steps = gl.cdiv(K, x_ring.shape[2])
    first = gl.zeros((BLOCK_M, FIRST), gl.int32, first_layout)
    second = gl.zeros((BLOCK_M, SECOND), gl.int32, second_layout)

    i = 0
    number = gl.program_id(0)
    if number < wide:
        for ahead in gl.static_range(SKEW):
            _wait_full(full, ahead)
            first = _multiply(first, x_ring, first_ring, ahead, ahead, ahead > 0)
        first = warpgroup_mma_wait(SKEW, deps=(first,))
        while number + gl.num_programs(0) < wide:
            row, column = _corner(number, tiles_m, tiles_n, GROUP)
            first, second = _whole_tile(
                first,
                second,
                i,
                row * BLOCK_M,
                column * WIDTH,
                rings,
                barriers,
                tensors,
                shape,
                SKEW,
                ONE_SCALE,
                ONE_GATE,
                False,
            )
            i += steps
            number += gl.num_programs(0)
        row, column = _corner(number, tiles_m, tiles_n, GROUP)
        first, second = _whole_tile(
            first,
            second,
            i,
            row * BLOCK_M,
            column * WIDTH,
            rings,
            barriers,
            tensors,
            shape,
            SKEW,
            ONE_SCALE,
            ONE_GATE,
            True,
        )
        i += steps + SKEW

    for number in range(gl.program_id(0), narrow, gl.num_programs(0)):
        row, column = _corner(wide + number // 2, tiles_m, tiles_n, GROUP)
        total = gl.zeros((BLOCK_M, FIRST), gl.int32, first_layout)
        for step in range(steps):
            _wait_full(full, i + step)
            total = _multiply(total, x_ring, first_ring, i + step, i + step, step > 0)
            total = warpgroup_mma_wait(1, deps=(total,))
            if step > 0:
                _release(empty, i + step - 1)
        total = warpgroup_mma_wait(0, deps=(total,))
        i += steps
        _release(empty, i - 1)
        n = column * WIDTH + (number % 2) * FIRST
        _finish(total, row * BLOCK_M, n, tensors, shape, ONE_SCALE, ONE_GATE)


@gluon.jit(do_not_specialize=["gate_rows", "wide", "narrow"])
def int8_linear_kernel(
    x,
    first,
    second,
    x_scale,
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
    wide,
    narrow,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
    STAGES: gl.constexpr,
    SKEW: gl.constexpr,
    GROUP: gl.constexpr,
):
    BLOCK_M: gl.constexpr = x.block_type.shape[0]
    BLOCK_K: gl.constexpr = x.block_type.shape[1]
    FIRST: gl.constexpr = first.block_type.shape[0]
    SECOND: gl.constexpr = second.block_type.shape[0]
    x_ring = gl.allocate_shared_memory(gl.int8, [STAGES + SKEW, BLOCK_M, BLOCK_K], x.layout)
    first_ring = gl.allocate_shared_memory(gl.int8, [STAGES, FIRST, BLOCK_K], first.layout)
    second_ring = gl.allocate_shared_memory(gl.int8, [STAGES, SECOND, BLOCK_K], second.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    # TMA, too, must see the barriers ready.
    fence_async_shared()
    rings = (x_ring, first_ring, second_ring)
    barriers = (full, empty)
    tensors = (x_scale, scale, bias, gate, residual, out)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    rings,
                    barriers,
                    tensors,
                    (M, N, K, gate_rows, gate_stride),
                    (wide, narrow),
                    SKEW,
                    GROUP,
                    ONE_SCALE,
                    ONE_GATE,
                ),
            ),
            (
                _produce,
                (x, first, second, rings, barriers, (M, N, K), (wide, narrow), SKEW, GROUP),
            ),
        ],
        [1],
        [24],
    )


@cache
def layout(rows: int) -> gl.NVMMASharedLayout:
    """How (rows, BLOCK_K) codes lie in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, BLOCK_K], gl.int8)


def _descriptor(codes: Tensor, rows: int) -> TensorDescriptor:
    """For loads of (rows, BLOCK_K) of a matrix of codes; zeros beyond its edges."""
    return TensorDescriptor(codes, codes.shape, codes.stride(), [rows, BLOCK_K], layout(rows))


def takes(
    x: Tensor,
    x_scale: Tensor,  # noqa: ARG001
    weight: Tensor,
    *_: object,
) -> bool:
    """Whether the kernel computes these: enough features to overlap, rows that TMA can address.

    Below half a tile's rows Triton's smaller tiles waste less.
    """
    features = x.shape[1]
    return (
        features > SKEW * BLOCK_K
        and features % 16 == 0
        and x.shape[0] > BLOCK_M // 2
        and weight.shape[0] > 0
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.data_ptr() % 16 == 0
        and weight.data_ptr() % 16 == 0
    )


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
    """Shapes as in :func:`viditq.ops.int8_linear` -> (M, N) ``dtype``; see :func:`takes`."""
    m, k = x.shape
    n = weight.shape[0]
    gate = None if gate is None else dense(gate)
    out = torch.empty(m, n, dtype=dtype, device=x.device)
    programs = multiprocessors(x.device)
    widths, whole, halves = share_out(m, n, programs)
    gate_rows = m if gate is None else m // len(gate)
    with torch.cuda.device_of(x):
        int8_linear_kernel[(min(programs, max(whole, halves)),)](
            _descriptor(x, BLOCK_M),
            _descriptor(weight, widths[0]),
            _descriptor(weight, widths[1]),
            x_scale.contiguous(),
            scale.contiguous(),
            bias if bias is None else bias.contiguous(),
            gate,
            residual if residual is None else residual.contiguous(),
            out,
            m,
            n,
            k,
            gate_rows,
            n if gate is None else gate.stride(0),
            whole,
            halves,
            ONE_SCALE=x_scale.ndim == 0,
            ONE_GATE=gate is not None and (gate_rows == m or gate_rows % BLOCK_M == 0),
            STAGES=STAGES,
            SKEW=SKEW,
            GROUP=GROUP,
            num_warps=8,
        )
    return out
