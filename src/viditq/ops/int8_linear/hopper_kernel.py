"""The kernel of ``int8_linear`` for Hopper (sm_90): asynchronous ``wgmma``, and a hidden epilogue.

One program per multiprocessor walks over tiles of the result. A producer warp fills a ring of
stages, and two warp-groups multiply.

A tile is 128 rows by two halves of columns, each half with accumulators of its own. The second half
runs ``SKEW`` stages behind the first. So when the first half is done, the tensor cores still have
the second's last stages to multiply while the first is scaled and stored, and the second is stored
while the next tile's first half has begun. (Two warp-groups on alternating tiles, CUTLASS'
ping-pong, hide the epilogue as well, but each then loads a tile alone, for half the work per byte.)

Stage ``i`` holds what is multiplied together: rows of ``x`` and of the first half's weight at step
``i``, and of the second half's at step ``i - SKEW``. Only ``x`` stays for the second half, so its
ring is longer.

Full rounds of tiles leave a remainder in which not all multiprocessors would have work; it is cut
into halves, which share out more evenly.

The accumulators are int32 and exact; scales, bias, gate and residual follow in fp32 in the order of
the reference. What the kernel declines, its launch in ``hopper`` says.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

__all__ = ["int8_linear_kernel"]


@gluon.jit
def _corner(number, tiles_m, tiles_n, GROUP: gl.constexpr):
    """Row and column of a tile, counted in tiles: down GROUP rows, then one column on."""
    group = number // (GROUP * tiles_n)
    rows = gl.minimum(tiles_m - group * GROUP, GROUP)
    inside = number % (GROUP * tiles_n)
    return group * GROUP + inside % rows, inside // rows


@gluon.jit
def _load_weight(weight, n, k, ready, half):
    """A stage of one half's weight, in boxes."""
    BOX: gl.constexpr = weight.block_type.shape[0]
    for part in gl.static_range(half.shape[0] // BOX):
        box = half.slice(part * BOX, BOX, 0)
        tma.async_copy_global_to_shared(weight, [n + part * BOX, k], ready, box)


@gluon.jit
def _produce(x, weight, rings, barriers, shape, shares, SKEW: gl.constexpr, GROUP: gl.constexpr):
    """The producer warp: the stages of all tiles of this program, in order."""
    M, N, K = shape
    wide, narrow = shares
    x_ring, first_ring, second_ring = rings
    full, empty = barriers
    X_STAGES: gl.constexpr = x_ring.shape[0]
    STAGES: gl.constexpr = first_ring.shape[0]
    BLOCK_M: gl.constexpr = x_ring.shape[1]
    BLOCK_K: gl.constexpr = x_ring.shape[2]
    FIRST: gl.constexpr = first_ring.shape[1]
    WIDTH: gl.constexpr = FIRST + second_ring.shape[1]
    X_BYTES: gl.constexpr = BLOCK_M * BLOCK_K
    FIRST_BYTES: gl.constexpr = FIRST * BLOCK_K
    SECOND_BYTES: gl.constexpr = second_ring.shape[1] * BLOCK_K
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
            _load_weight(weight, n, k, ready, first_ring.index(at))
            _load_weight(weight, second_n, second_step * BLOCK_K, ready, second_ring.index(at))
            i += 1
        behind = n
    if i > 0:
        for step in range(steps - SKEW, steps):
            at = i % STAGES
            ready = full.index(at)
            mbarrier.wait(empty.index(at), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, SECOND_BYTES)
            _load_weight(weight, behind + FIRST, step * BLOCK_K, ready, second_ring.index(at))
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
            _load_weight(weight, n, k, ready, first_ring.index(at))
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
def _load_vectors(m, n, total, tensors, shape, ONE_SCALE: gl.constexpr, ONE_GATE: gl.constexpr):
    """Scales, bias and gate of a half at (m, n), as its accumulators ``total`` will want them."""
    M, N, _, gate_rows, gate_stride = shape
    x_scale, scale, bias, gate = tensors
    layout: gl.constexpr = total.type.layout
    rows = m + gl.arange(0, total.shape[0], gl.SliceLayout(1, layout))
    columns = n + gl.arange(0, total.shape[1], gl.SliceLayout(0, layout))
    in_m, in_n = rows < M, columns < N
    x_scales = gl.load(x_scale) if ONE_SCALE else gl.load(x_scale + rows, mask=in_m, other=0.0)
    scales = gl.load(scale + columns, mask=in_n, other=0.0)
    biases, gates = scales, scales  # stand in for what there is none of
    if bias is not None:
        biases = gl.load(bias + columns, mask=in_n, other=0.0)
    if gate is not None and ONE_GATE:
        at = gate + (m // gate_rows).to(gl.int64) * gate_stride + columns
        gates = gl.load(at, mask=in_n, other=0.0)
    elif gate is not None:
        at = (rows // gate_rows).to(gl.int64)[:, None] * gate_stride + columns[None, :]
        gates = gl.load(gate + at, mask=in_m[:, None] & in_n[None, :], other=0.0)
    return x_scales, scales, biases, gates


@gluon.jit
def _fetch_residual(residual, m, n, boxes, ready, WIDTH: gl.constexpr):
    """Start to load the residual of a tile to where its result will be put together."""
    BOX: gl.constexpr = residual.block_type.shape[1]
    # The stores before this one have read what it writes over.
    tma.store_wait(0)
    mbarrier.expect(ready, residual.block_type.nbytes * (WIDTH // BOX))
    for part in gl.static_range(WIDTH // BOX):
        tma.async_copy_global_to_shared(residual, [m, n + part * BOX], ready, boxes.index(part))


@gluon.jit
def _store_box(y, m, n, out, residual, box):
    """Add the residual and store (BLOCK_M, BOX) of the result at (m, n)."""
    if residual is not None:
        y = y + box.load(y.type.layout).to(gl.float32)
    else:
        # Of the stores before this one all but the last have read what it writes over.
        tma.store_wait(1)
    box.store(y.to(out.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out, [m, n], box)


@gluon.jit
def _finish(
    total,
    m,
    n,
    vectors,
    tensors,
    ends,
    phase,
    stored,
    PART: gl.constexpr,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
):
    """Scale, bias, gate, residual, and the store of one half of a tile at (m, n).

    The way to memory leads through boxes in shared memory, filled in turn: from the accumulators'
    own layout a warp would store 16 bytes to each of eight rows at a time, which takes longer than
    the products do. ``stored`` counts the boxes before; with a residual each part of a tile, from
    ``PART`` on, has a box of its own. Returns the new count.
    """
    x_scales, scales, biases, gates = vectors
    _, _, bias, gate = tensors
    out, residual, boxes, ready = ends
    BOX: gl.constexpr = out.block_type.shape[1]
    y = total.to(gl.float32)
    y = y * (x_scales if ONE_SCALE else x_scales[:, None])
    y = y * scales[None, :]
    if bias is not None:
        y = y + biases.to(gl.float32)[None, :]
    if gate is not None and ONE_GATE:
        y = y * gates.to(gl.float32)[None, :]
    elif gate is not None:
        y = y * gates.to(gl.float32)
    at = stored % 2
    if residual is not None:
        at = PART
        mbarrier.wait(ready, phase)
    if total.shape[1] == BOX:
        _store_box(y, m, n, out, residual, boxes.index(at))
        return stored + 1
    else:
        pair = y.reshape((total.shape[0], 2, BOX)).permute((0, 2, 1))
        left, right = pair.split()
        _store_box(left, m, n, out, residual, boxes.index(at))
        at = at + 1 if residual is not None else (stored + 1) % 2
        _store_box(right, m, n + BOX, out, residual, boxes.index(at))
        return stored + 2


@gluon.jit
def _whole_tile(
    first,
    second,
    i,
    done,
    stored,
    m,
    n,
    rings,
    barriers,
    tensors,
    ends,
    shape,
    SKEW: gl.constexpr,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
    LAST: gl.constexpr,
):
    """The tile at (m, n), after ``done`` others, from stage ``i`` on. Of its first half ``SKEW``
    products are under way; unless it is the last, those of the next tile are in the end."""
    x_ring, first_ring, second_ring = rings
    full, empty = barriers
    _, residual, boxes, ready = ends
    FIRST: gl.constexpr = first_ring.shape[1]
    BOX: gl.constexpr = boxes.shape[2]
    steps = gl.cdiv(shape[2], x_ring.shape[2])
    # The first step for both halves; the rest are alike.
    j = i + SKEW
    _wait_full(full, j)
    first = _multiply(first, x_ring, first_ring, j, j, True)
    second = _multiply(second, x_ring, second_ring, i, j, False)
    first, second = warpgroup_mma_wait(2, deps=(first, second))
    for before in gl.static_range(SKEW):
        _release(empty, i + before)
    if residual is not None:
        _fetch_residual(residual, m, n, boxes, ready, FIRST + second_ring.shape[1])
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
    vectors = _load_vectors(m, n, first, tensors, shape, ONE_SCALE, ONE_GATE)
    first, second = warpgroup_mma_wait(SKEW, deps=(first, second))
    _release(empty, i - 1)
    stored = _finish(first, m, n, vectors, tensors, ends, done & 1, stored, 0, ONE_SCALE, ONE_GATE)
    n += FIRST
    vectors = _load_vectors(m, n, second, tensors, shape, ONE_SCALE, ONE_GATE)
    if LAST:
        second = warpgroup_mma_wait(0, deps=(second,))
        for ahead in gl.static_range(SKEW):
            _release(empty, i + ahead)
    else:
        for ahead in gl.static_range(SKEW):
            first = _multiply(first, x_ring, first_ring, i + ahead, i + ahead, ahead > 0)
        first, second = warpgroup_mma_wait(SKEW, deps=(first, second))
    stored = _finish(
        second, m, n, vectors, tensors, ends, done & 1, stored, FIRST // BOX, ONE_SCALE, ONE_GATE
    )
    return first, second, stored


@gluon.jit
def _consume(
    rings,
    barriers,
    tensors,
    ends,
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
    _, residual, boxes, ready = ends
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
    done = 0  # tiles
    stored = 0  # boxes
    number = gl.program_id(0)
    if number < wide:
        for ahead in gl.static_range(SKEW):
            _wait_full(full, ahead)
            first = _multiply(first, x_ring, first_ring, ahead, ahead, ahead > 0)
        first = warpgroup_mma_wait(SKEW, deps=(first,))
        while number + gl.num_programs(0) < wide:
            row, column = _corner(number, tiles_m, tiles_n, GROUP)
            first, second, stored = _whole_tile(
                first,
                second,
                i,
                done,
                stored,
                row * BLOCK_M,
                column * WIDTH,
                rings,
                barriers,
                tensors,
                ends,
                shape,
                SKEW,
                ONE_SCALE,
                ONE_GATE,
                False,
            )
            i += steps
            done += 1
            number += gl.num_programs(0)
        row, column = _corner(number, tiles_m, tiles_n, GROUP)
        first, second, stored = _whole_tile(
            first,
            second,
            i,
            done,
            stored,
            row * BLOCK_M,
            column * WIDTH,
            rings,
            barriers,
            tensors,
            ends,
            shape,
            SKEW,
            ONE_SCALE,
            ONE_GATE,
            True,
        )
        i += steps + SKEW
        done += 1

    for number in range(gl.program_id(0), narrow, gl.num_programs(0)):
        row, column = _corner(wide + number // 2, tiles_m, tiles_n, GROUP)
        m, n = row * BLOCK_M, column * WIDTH + (number % 2) * FIRST
        if residual is not None:
            _fetch_residual(residual, m, n, boxes, ready, FIRST)
        total = gl.zeros((BLOCK_M, FIRST), gl.int32, first_layout)
        for step in range(steps):
            _wait_full(full, i + step)
            total = _multiply(total, x_ring, first_ring, i + step, i + step, step > 0)
            total = warpgroup_mma_wait(1, deps=(total,))
            if step > 0:
                _release(empty, i + step - 1)
        vectors = _load_vectors(m, n, total, tensors, shape, ONE_SCALE, ONE_GATE)
        total = warpgroup_mma_wait(0, deps=(total,))
        i += steps
        _release(empty, i - 1)
        stored = _finish(
            total, m, n, vectors, tensors, ends, done & 1, stored, 0, ONE_SCALE, ONE_GATE
        )
        done += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["gate_rows", "wide", "narrow"])
def int8_linear_kernel(
    x,
    weight,
    out,
    residual,
    x_scale,
    scale,
    bias,
    gate,
    M,
    N,
    K,
    gate_rows,
    gate_stride,
    wide,
    narrow,
    ONE_SCALE: gl.constexpr,
    ONE_GATE: gl.constexpr,
    FIRST: gl.constexpr,
    SECOND: gl.constexpr,
    STAGES: gl.constexpr,
    SKEW: gl.constexpr,
    GROUP: gl.constexpr,
):
    BLOCK_M: gl.constexpr = x.block_type.shape[0]
    BLOCK_K: gl.constexpr = x.block_type.shape[1]
    BOX: gl.constexpr = out.block_type.shape[1]
    # With a residual, that of a whole tile is on its way at a time.
    BOXES: gl.constexpr = 2 if residual is None else (FIRST + SECOND) // BOX
    x_ring = gl.allocate_shared_memory(gl.int8, [STAGES + SKEW, BLOCK_M, BLOCK_K], x.layout)
    first_ring = gl.allocate_shared_memory(gl.int8, [STAGES, FIRST, BLOCK_K], weight.layout)
    second_ring = gl.allocate_shared_memory(gl.int8, [STAGES, SECOND, BLOCK_K], weight.layout)
    boxes = gl.allocate_shared_memory(out.dtype, [BOXES, BLOCK_M, BOX], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    mbarrier.init(ready, count=1)
    # TMA, too, must see the barriers ready.
    fence_async_shared()
    rings = (x_ring, first_ring, second_ring)
    barriers = (full, empty)
    tensors = (x_scale, scale, bias, gate)
    ends = (out, residual, boxes, ready)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    rings,
                    barriers,
                    tensors,
                    ends,
                    (M, N, K, gate_rows, gate_stride),
                    (wide, narrow),
                    SKEW,
                    GROUP,
                    ONE_SCALE,
                    ONE_GATE,
                ),
            ),
            (_produce, (x, weight, rings, barriers, (M, N, K), (wide, narrow), SKEW, GROUP)),
        ],
        [1],
        [24],
    )
