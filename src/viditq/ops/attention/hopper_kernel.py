"""The kernel of ``attention`` for Hopper (sm_90): heads of 72 features, no more padding than to 80.

Torch's kernels compute heads of 72 as if they had 128 features. Here a head is cut into 64 and the
rest: scores are products over 64 and over 16 features, of which TMA fills eight with zeros; values
are multiplied by ``wgmma`` for 64 features, and by ``mma`` of single warps for the last eight, for
which both operands are in registers.

One program per multiprocessor walks over tiles of 256 queries of a head. A producer warp fills a
ring of keys and values; four warp-groups take 64 queries each and softmax as in FlashAttention-2
(arXiv 2307.08691): maxima and sums of a row so far, in fp32, and what was summed before is scaled
down when the maximum rises. A warp-group does one thing at a time; while some are at the softmax,
others multiply. (Scores begun before the softmax, FlashAttention-3's way, are slower here; so are
fewer warp-groups with more registers. See dev/LOG.md.)

The last keys come first, so that only the first step knows of an end. Results are bitwise
repeatable. What the kernel declines, its launch in ``hopper`` says.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    mma_v2,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

__all__ = ["KEYS", "LAYOUTS", "QUERIES", "attention_kernel"]

KEYS = 64
"""Of a step."""

QUERIES = 64
"""Of a warp-group."""

LAYOUTS = {64: gl.NVMMASharedLayout(128, 16, rank=4), 16: gl.NVMMASharedLayout(32, 16, rank=4)}
LAYOUTS[8] = gl.NVMMASharedLayout(0, 16, rank=4)
"""How a box of (1, tokens, 1, features) lies in shared memory, by its features."""

_KEYS, _QUERIES, _GROUPS = gl.constexpr(KEYS), gl.constexpr(QUERIES), gl.constexpr(4)
_BOX_64, _BOX_16, _BOX_8 = (gl.constexpr(LAYOUTS[width]) for width in (64, 16, 8))
_FLAT_64 = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
_FLAT_16 = gl.constexpr(gl.NVMMASharedLayout(32, 16, rank=2))
_FLAT_8 = gl.constexpr(gl.NVMMASharedLayout(0, 16, rank=2))
_WIDE = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
)
"""Scores, and the first 64 features of the result: 64 x 64."""
_SLIM = gl.constexpr(
    gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[4, 1], instr_shape=[16, 8])
)
"""The last eight features of the result: 64 x 8. A warp has the same rows as in ``_WIDE``."""


@gluon.jit
def _matrix(ring, slot, WIDTH: gl.constexpr, LAYOUT: gl.constexpr):
    """A box of a ring, as tokens by features."""
    box = ring.index(slot)
    return box._reinterpret(box.dtype, [box.shape[1], WIDTH], LAYOUT)


@gluon.jit
def _place(tile, queries, heads):
    """Sample, first query and head of a tile."""
    per_head = gl.cdiv(queries, _GROUPS * _QUERIES)
    head = (tile // per_head) % heads
    return tile // (per_head * heads), (tile % per_head) * (_GROUPS * _QUERIES), head


@gluon.jit
def _load(boxes, rings, slot, sample, token, head, ready):
    """Some tokens of a head, both parts."""
    wide, rest = boxes
    wide_ring, rest_ring = rings
    tma.async_copy_global_to_shared(wide, [sample, token, head, 0], ready, wide_ring.index(slot))
    tma.async_copy_global_to_shared(rest, [sample, token, head, 64], ready, rest_ring.index(slot))


@gluon.jit
def _produce(q, k, v, q_rings, k_rings, v_rings, barriers, shape, STAGES: gl.constexpr):
    """The producer warp: queries, and all steps' keys and values, of all tiles of this program."""
    asked, answered, full, empty = barriers
    queries, keys, heads, tiles = shape
    steps = gl.cdiv(keys, _KEYS)
    step = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sample, query, head = _place(tile, queries, heads)
        for group in gl.static_range(_GROUPS):
            ready = asked.index(group)
            mbarrier.wait(answered.index(group), (turn & 1) ^ 1)
            mbarrier.expect(ready, _QUERIES * 80 * 2)
            _load(q, q_rings, group, sample, query + group * _QUERIES, head, ready)
        for left in range(steps):
            slot = step % STAGES
            key = (steps - 1 - left) * _KEYS
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, _KEYS * (80 + 72) * 2)
            _load(k, k_rings, slot, sample, key, head, ready)
            _load(v, v_rings, slot, sample, key, head, ready)
            step += 1
        turn += 1  # noqa: SIM113, there is no enumerate here


@gluon.jit
def _scores(q_rings, k_rings, full, step, group: gl.constexpr, STAGES: gl.constexpr):
    """Begin q kᵀ of a step, 64 x 64, when its keys are there."""
    q_ring, q_rest_ring = q_rings
    k_ring, k_rest_ring = k_rings
    slot = step % STAGES
    mbarrier.wait(full.index(slot), (step // STAGES) & 1)
    q = _matrix(q_ring, group, 64, _FLAT_64)
    k = _matrix(k_ring, slot, 64, _FLAT_64)
    s = gl.zeros((_QUERIES, _KEYS), gl.float32, _WIDE)
    s = warpgroup_mma(q, k.permute((1, 0)), s, use_acc=False, is_async=True)
    q = _matrix(q_rest_ring, group, 16, _FLAT_16)
    k = _matrix(k_rest_ring, slot, 16, _FLAT_16)
    return warpgroup_mma(q, k.permute((1, 0)), s, use_acc=True, is_async=True)


@gluon.jit
def _weighted(p, o, rest, v_rings, slot):
    """Begin to add p v to the result's first features, and add it to the last."""
    v_ring, v_rest_ring = v_rings
    o = warpgroup_mma(p, _matrix(v_ring, slot, 64, _FLAT_64), o, is_async=True)
    v = _matrix(v_rest_ring, slot, 8, _FLAT_8).load(gl.DotOperandLayout(1, _SLIM, 2))
    return o, mma_v2(gl.convert_layout(p, gl.DotOperandLayout(0, _SLIM, 2)), v, rest)


@gluon.jit
def _load_bias(bias, sample, key, keys):
    """What is added to the scores of some keys; -inf beyond the last."""
    return gl.load(bias + sample * keys + key, mask=key < keys, other=-float("inf"))


@gluon.jit
def _biased(s, added, scale):
    """Scores in base 2 with what is added."""
    return s * scale + (added.to(gl.float32) * 1.4426950408889634)[None, :]


@gluon.jit
def _softmax(s, top, total, scale):
    """Weights not yet divided by their sum; maximum and sum of the rows so far; what becomes of
    what was summed before."""
    new = gl.maximum(top, gl.max(s, 1) * scale)
    fade = gl.exp2(top - new)
    p = gl.exp2(s * scale - new[:, None])
    return p, new, total * fade + gl.sum(p, 1), fade


@gluon.jit
def _scaled(o, rest, factor):
    """Both parts of the result, its rows times factors."""
    o = o * factor[:, None]
    return o, rest * gl.convert_layout(factor, gl.SliceLayout(1, _SLIM))[:, None]


@gluon.jit
def _consume(
    out,
    q_rings,
    k_rings,
    v_rings,
    barriers,
    shape,
    result,
    bias,
    scale,
    group: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A warp-group: its 64 queries of all tiles of this program."""
    asked, answered, full, empty = barriers
    queries, keys, heads, tiles = shape
    steps = gl.cdiv(keys, _KEYS)
    P: gl.constexpr = gl.DotOperandLayout(0, _WIDE, 2)
    columns = gl.arange(0, _KEYS, gl.SliceLayout(0, _WIDE))
    step = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sample, query, head = _place(tile, queries, heads)
        o = gl.zeros((_QUERIES, 64), gl.float32, _WIDE)
        rest = gl.zeros((_QUERIES, 8), gl.float32, _SLIM)
        # Finite, lest keys of a whole step that are masked by -inf make it less -inf.
        top = gl.full((_QUERIES,), -1e30, gl.float32, gl.SliceLayout(1, _WIDE))
        total = gl.full((_QUERIES,), 0.0, gl.float32, gl.SliceLayout(1, _WIDE))
        mbarrier.wait(asked.index(group), turn & 1)
        s = _scores(q_rings, k_rings, full, step, group, STAGES)
        s = warpgroup_mma_wait(0, deps=(s,))
        key = (steps - 1) * _KEYS + columns
        if bias is None:
            s = gl.where((key < keys)[None, :], s * scale, -float("inf"))
        else:
            s = _biased(s, _load_bias(bias, sample, key, keys), scale)
        p, top, total, fade = _softmax(s, top, total, 1.0)
        p = gl.convert_layout(p.to(out.dtype), P)
        for left in range(1, steps):
            slot = step % STAGES
            if bias is not None:
                key = (steps - 1 - left) * _KEYS + columns
                added = _load_bias(bias, sample, key, keys)
            o, rest = _weighted(p, o, rest, v_rings, slot)
            step += 1
            s = _scores(q_rings, k_rings, full, step, group, STAGES)
            o, s = warpgroup_mma_wait(0, deps=(o, s))
            mbarrier.arrive(empty.index(slot), count=1)
            if bias is None:
                p, top, total, fade = _softmax(s, top, total, scale)
            else:
                p, top, total, fade = _softmax(_biased(s, added, scale), top, total, 1.0)
            o, rest = _scaled(o, rest, fade)
            p = gl.convert_layout(p.to(out.dtype), P)
        slot = step % STAGES
        o, rest = _weighted(p, o, rest, v_rings, slot)
        step += 1
        o = warpgroup_mma_wait(0, deps=(o,))
        mbarrier.arrive(empty.index(slot), count=1)
        o, rest = _scaled(o, rest, 1.0 / total)
        # Where the queries were, is room for the result.
        q_ring, _ = q_rings
        query += group * _QUERIES
        _matrix(q_ring, group, 64, _FLAT_64).store(o.to(out.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [sample, query, head, 0], q_ring.index(group))
        row = query + gl.arange(0, _QUERIES, gl.SliceLayout(1, _SLIM))
        place = ((sample * queries + row).to(gl.int64) * heads + head) * 72 + 64
        column = gl.arange(0, 8, gl.SliceLayout(0, _SLIM))
        inside = (row < queries)[:, None]
        gl.store(result + place[:, None] + column[None, :], rest.to(out.dtype), mask=inside)
        tma.store_wait(0)
        mbarrier.arrive(answered.index(group), count=1)
        turn += 1  # noqa: SIM113, there is no enumerate here


@gluon.jit
def attention_kernel(
    q,
    q_rest,
    k,
    k_rest,
    v,
    v_rest,
    out,
    result,
    bias,
    queries,
    keys,
    heads,
    tiles,
    scale,
    STAGES: gl.constexpr,
):
    """softmax(q kᵀ · ln 2 · scale + bias) v; ``out`` and ``result`` are the same tensor."""
    kind: gl.constexpr = q.dtype
    q_ring = gl.allocate_shared_memory(kind, [_GROUPS, 1, _QUERIES, 1, 64], _BOX_64)
    q_rest_ring = gl.allocate_shared_memory(kind, [_GROUPS, 1, _QUERIES, 1, 16], _BOX_16)
    k_ring = gl.allocate_shared_memory(kind, [STAGES, 1, _KEYS, 1, 64], _BOX_64)
    k_rest_ring = gl.allocate_shared_memory(kind, [STAGES, 1, _KEYS, 1, 16], _BOX_16)
    v_ring = gl.allocate_shared_memory(kind, [STAGES, 1, _KEYS, 1, 64], _BOX_64)
    v_rest_ring = gl.allocate_shared_memory(kind, [STAGES, 1, _KEYS, 1, 8], _BOX_8)
    asked = gl.allocate_shared_memory(gl.int64, [_GROUPS, 1], mbarrier.MBarrierLayout())
    answered = gl.allocate_shared_memory(gl.int64, [_GROUPS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(_GROUPS):
        mbarrier.init(asked.index(group), count=1)
        mbarrier.init(answered.index(group), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=_GROUPS)
    fence_async_shared()
    qs = (q_ring, q_rest_ring)
    ks = (k_ring, k_rest_ring)
    vs = (v_ring, v_rest_ring)
    barriers = (asked, answered, full, empty)
    shape = (queries, keys, heads, tiles)
    gl.warp_specialize(
        [
            (_consume, (out, qs, ks, vs, barriers, shape, result, bias, scale, 0, STAGES)),
            (_consume, (out, qs, ks, vs, barriers, shape, result, bias, scale, 1, STAGES)),
            (_consume, (out, qs, ks, vs, barriers, shape, result, bias, scale, 2, STAGES)),
            (_consume, (out, qs, ks, vs, barriers, shape, result, bias, scale, 3, STAGES)),
            (
                _produce,
                ((q, q_rest), (k, k_rest), (v, v_rest), qs, ks, vs, barriers, shape, STAGES),
            ),
        ],
        [4, 4, 4, 1],
        [112, 112, 112, 24],
    )
