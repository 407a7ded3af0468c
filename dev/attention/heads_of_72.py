# Tuples are unpacked alike everywhere; a script prints and defines small functions in its loop.
# ruff: noqa: RUF059, B023, T201, E731, SIM115
"""An experiment: attention for heads of 72 on Hopper, in Gluon, against cuDNN's (dev/LOG.md).

A head is cut into 64 + 16, both by TMA with zeros beyond the head; a producer warp fills rings of
keys and values, and WG warp-groups, each a partition of its own, take 64 queries each. What
was slower, fewer warp-groups and scores started before the softmax, is in the log. Not part of the
package.

    python dev/attention/heads_of_72.py            # on a GPU: right? how fast?
    python dev/attention/heads_of_72.py compile    # anywhere: registers, stack, shared memory
"""

import sys

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

L4 = gl.NVMMASharedLayout(128, 16, rank=4)
S4 = gl.NVMMASharedLayout(32, 16, rank=4)
CL4, CS4 = gl.constexpr(L4), gl.constexpr(S4)
CL2 = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
CS2 = gl.constexpr(gl.NVMMASharedLayout(32, 16, rank=2))


@gluon.jit
def _flat(ring, i, W: gl.constexpr, LAYOUT: gl.constexpr):
    box = ring.index(i)
    return box._reinterpret(box.dtype, [64, W], LAYOUT)


@gluon.jit
def _load(big, small, rb, rs, at, b, t, h, ready):
    tma.async_copy_global_to_shared(big, [b, t, h, 0], ready, rb.index(at))
    tma.async_copy_global_to_shared(small, [b, t, h, 64], ready, rs.index(at))


@gluon.jit
def _produce(descs, rings, bars, S, WG: gl.constexpr, STAGES: gl.constexpr):
    qb, qs, kb, ks, vb, vs, ob, os_ = descs
    rqb, rqs, rkb, rks, rvb, rvs = rings
    qfull, kfull, vfull, kempty, vempty = bars
    h = gl.program_id(1)
    b = gl.program_id(2)
    t = gl.program_id(0) * (64 * WG)
    BYTES: gl.constexpr = 64 * 80 * 2
    for w in gl.static_range(WG):
        mbarrier.expect(qfull.index(w), BYTES)
        _load(qb, qs, rqb, rqs, w, b, t + 64 * w, h, qfull.index(w))
    for j in range(gl.cdiv(S, 64)):
        at = j % STAGES
        phase = ((j // STAGES) & 1) ^ 1
        mbarrier.wait(kempty.index(at), phase)
        mbarrier.expect(kfull.index(at), BYTES)
        _load(kb, ks, rkb, rks, at, b, j * 64, h, kfull.index(at))
        mbarrier.wait(vempty.index(at), phase)
        mbarrier.expect(vfull.index(at), BYTES)
        _load(vb, vs, rvb, rvs, at, b, j * 64, h, vfull.index(at))


@gluon.jit
def _scores(rings, bars, j, w, SL: gl.constexpr, STAGES: gl.constexpr):
    rqb, rqs, rkb, rks, rvb, rvs = rings
    qfull, kfull, vfull, kempty, vempty = bars
    at = j % STAGES
    mbarrier.wait(kfull.index(at), (j // STAGES) & 1)
    s = gl.zeros((64, 64), gl.float32, SL)
    s = warpgroup_mma(
        _flat(rqb, w, 64, CL2),
        _flat(rkb, at, 64, CL2).permute((1, 0)),
        s,
        use_acc=False,
        is_async=True,
    )
    s = warpgroup_mma(
        _flat(rqs, w, 16, CS2),
        _flat(rks, at, 16, CS2).permute((1, 0)),
        s,
        use_acc=True,
        is_async=True,
    )
    return s


@gluon.jit
def _step(
    o,
    u,
    s,
    top,
    total,
    rings,
    bars,
    j,
    w,
    S,
    scale,
    SL: gl.constexpr,
    SM: gl.constexpr,
    DT: gl.constexpr,
    STAGES: gl.constexpr,
    LAST: gl.constexpr,
):
    rqb, rqs, rkb, rks, rvb, rvs = rings
    qfull, kfull, vfull, kempty, vempty = bars
    PB: gl.constexpr = gl.DotOperandLayout(0, SL, 2)
    PS: gl.constexpr = gl.DotOperandLayout(0, SM, 2)
    at = j % STAGES
    if LAST:
        columns = gl.arange(0, 64, gl.SliceLayout(0, SL))
        s = gl.where((j * 64 + columns < S)[None, :], s, -float("inf"))
    new = gl.maximum(top, gl.max(s, 1) * scale)
    alpha = gl.exp2(top - new)
    p = gl.exp2(s * scale - new[:, None])
    total = total * alpha + gl.sum(p, 1)
    ow, uw = warpgroup_mma_wait(0, deps=(o, u))
    mbarrier.arrive(vempty.index((j + STAGES - 1) % STAGES), count=1, pred=j > 0)
    ow = ow * alpha[:, None]
    uw = uw * gl.convert_layout(alpha, gl.SliceLayout(1, SM))[:, None]
    pb = p.to(DT)
    mbarrier.wait(vfull.index(at), (j // STAGES) & 1)
    o = warpgroup_mma(gl.convert_layout(pb, PB), _flat(rvb, at, 64, CL2), ow, is_async=True)
    u = warpgroup_mma(gl.convert_layout(pb, PS), _flat(rvs, at, 16, CS2), uw, is_async=True)
    if LAST:
        s2 = s
    else:
        n2 = _scores(rings, bars, j + 1, w, SL, STAGES)
        s2 = warpgroup_mma_wait(0, deps=(n2,))
        mbarrier.arrive(kempty.index((j + 1) % STAGES), count=1)
    return o, u, s2, new, total


@gluon.jit
def _consume(
    descs,
    rings,
    bars,
    S,
    scale,
    w: gl.constexpr,
    WG: gl.constexpr,
    STAGES: gl.constexpr,
):
    qb, qs, kb, ks, vb, vs, ob, os_ = descs
    rqb, rqs, rkb, rks, rvb, rvs = rings
    qfull, kfull, vfull, kempty, vempty = bars
    DT: gl.constexpr = qb.dtype
    SL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]
    )
    SM: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 16, 16]
    )
    o = warpgroup_mma_init(gl.zeros((64, 64), gl.float32, SL))
    u = warpgroup_mma_init(gl.zeros((64, 16), gl.float32, SM))
    top = gl.full((64,), -float("inf"), gl.float32, gl.SliceLayout(1, SL))
    total = gl.full((64,), 0.0, gl.float32, gl.SliceLayout(1, SL))
    n = gl.cdiv(S, 64)
    mbarrier.wait(qfull.index(w), 0)
    first = _scores(rings, bars, 0, w, SL, STAGES)
    s = warpgroup_mma_wait(0, deps=(first,))
    mbarrier.arrive(kempty.index(0), count=1)
    for j in range(n - 1):
        o, u, s, top, total = _step(
            o, u, s, top, total, rings, bars, j, w, S, scale, SL, SM, DT, STAGES, False
        )
    o, u, s, top, total = _step(
        o, u, s, top, total, rings, bars, n - 1, w, S, scale, SL, SM, DT, STAGES, True
    )
    of, uf = warpgroup_mma_wait(0, deps=(o, u))
    inv = 1.0 / total
    of = of * inv[:, None]
    uf = uf * gl.convert_layout(inv, gl.SliceLayout(1, SM))[:, None]
    _flat(rqb, w, 64, CL2).store(of.to(DT))
    _flat(rqs, w, 16, CS2).store(uf.to(DT))
    fence_async_shared()
    t = gl.program_id(0) * (64 * WG) + 64 * w
    tma.async_copy_shared_to_global(ob, [gl.program_id(2), t, gl.program_id(1), 0], rqb.index(w))
    tma.async_copy_shared_to_global(os_, [gl.program_id(2), t, gl.program_id(1), 64], rqs.index(w))
    tma.store_wait(0)


@gluon.jit
def kernel(
    qb,
    qs,
    kb,
    ks,
    vb,
    vs,
    ob,
    os_,
    S,
    scale,
    WG: gl.constexpr,
    STAGES: gl.constexpr,
):
    DT: gl.constexpr = qb.dtype
    rqb = gl.allocate_shared_memory(DT, [WG, 1, 64, 1, 64], CL4)
    rqs = gl.allocate_shared_memory(DT, [WG, 1, 64, 1, 16], CS4)
    rkb = gl.allocate_shared_memory(DT, [STAGES, 1, 64, 1, 64], CL4)
    rks = gl.allocate_shared_memory(DT, [STAGES, 1, 64, 1, 16], CS4)
    rvb = gl.allocate_shared_memory(DT, [STAGES, 1, 64, 1, 64], CL4)
    rvs = gl.allocate_shared_memory(DT, [STAGES, 1, 64, 1, 16], CS4)
    qfull = gl.allocate_shared_memory(gl.int64, [WG, 1], mbarrier.MBarrierLayout())
    kfull = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    vfull = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    kempty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    vempty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(WG):
        mbarrier.init(qfull.index(w), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(kfull.index(i), count=1)
        mbarrier.init(vfull.index(i), count=1)
        mbarrier.init(kempty.index(i), count=WG)
        mbarrier.init(vempty.index(i), count=WG)
    fence_async_shared()
    descs = (qb, qs, kb, ks, vb, vs, ob, os_)
    rings = (rqb, rqs, rkb, rks, rvb, rvs)
    bars = (qfull, kfull, vfull, kempty, vempty)
    gl.warp_specialize(
        [
            (_consume, (descs, rings, bars, S, scale, 0, WG, STAGES)),
            (_consume, (descs, rings, bars, S, scale, 1, WG, STAGES)),
            (_consume, (descs, rings, bars, S, scale, 2, WG, STAGES)),
            (_consume, (descs, rings, bars, S, scale, 3, WG, STAGES)),
            (_produce, (descs, rings, bars, S, WG, STAGES)),
        ],
        [4, 4, 4, 1],
        [112, 112, 112, 24],
    )


WG = 4  # warp-groups, as many partitions as `kernel` starts
CONFIGS = [4, 6, 8]  # stages


def run(q, k, v, out, cfg):
    B, T, H, D = q.shape
    S = k.shape[1]
    d = []
    for t in (q, k, v, out):
        for w, lay in ((64, L4), (16, S4)):
            d.append(TensorDescriptor(t, list(t.shape), list(t.stride()), [1, 64, 1, w], lay))
    kernel[(triton.cdiv(T, 64 * WG), H, B)](
        *d, S, D**-0.5 * 1.4426950408889634, WG, cfg, num_warps=4
    )


def compile_all():
    import re
    import subprocess
    import tempfile

    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    big = f"tensordesc<bf16[1,64,1,64],{L4!r}>"
    small = f"tensordesc<bf16[1,64,1,16],{S4!r}>"
    names = ["qb", "qs", "kb", "ks", "vb", "vs", "ob", "os_"]
    for cfg in CONFIGS:
        sig = {n: (big if i % 2 == 0 else small) for i, n in enumerate(names)} | {
            "S": "i32",
            "scale": "fp32",
        }
        con = {}
        for i, (n, val) in enumerate(zip(["WG", "STAGES"], [WG, cfg], strict=True)):
            sig[n] = "constexpr"
            con[(10 + i,)] = val
        try:
            c = triton.compile(
                GluonASTSource(kernel, sig, con, {}),
                target=GPUTarget("cuda", 90, 32),
                options={"num_warps": 4},
            )
        except Exception as e:
            print(
                cfg,
                "FAILED",
                repr(e.__cause__ or e)[-900:],
                repr(getattr(e.__cause__, "__cause__", None))[-300:],
            )
            continue
        ptx = c.asm["ptx"]
        f = tempfile.NamedTemporaryFile(suffix=".cubin", delete=False)
        f.write(c.asm["cubin"])
        f.close()
        u = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", f.name], capture_output=True, text=True
        ).stdout
        print(
            cfg,
            triton.__version__,
            re.findall(r"REG:\d+|STACK:\d+", u),
            "shared",
            c.metadata.shared,
            "setmaxnreg",
            re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32 +(\d+)", ptx),
            "wgmma",
            ptx.count("wgmma.mma_async"),
            "bar",
            len(re.findall(r"\bbar(?:rier)?\.sync", ptx)),
            "ld.shared",
            len(re.findall(r"(?:ld|st)\.shared", ptx)),
            "tma",
            ptx.count("cp.async.bulk.tensor"),
            flush=True,
        )


def main():
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)

    def bench(f):
        for _ in range(3):
            f()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g):
            for _ in range(20):
                f()
        ts = []
        for _ in range(9):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            g.replay()
            b.record()
            b.synchronize()
            ts.append(a.elapsed_time(b) / 20)
        return sorted(ts)[4]

    for name, B, T, S, H in (
        ("pixart", 2, 4096, 4096, 16),
        ("odd", 1, 300, 333, 3),
        ("latte", 32, 1024, 1024, 16),
    ):
        qkv = torch.randn(B, max(T, S), 3, H, 72, device="cuda", dtype=torch.bfloat16)
        q, k, v = qkv[:, :T, 0], qkv[:, :S, 1], qkv[:, :S, 2]
        ref = F.scaled_dot_product_attention(
            *(t.transpose(1, 2).float() for t in (q, k, v))
        ).transpose(1, 2)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            lib = lambda: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
            y = lib().transpose(1, 2)
            base = bench(lib)
        e = lambda y: ((y.float() - ref).norm() / ref.norm()).item()
        print(f"{name}: cudnn {base:.4f} ms, error {e(y):.5f}", flush=True)
        for cfg in CONFIGS:
            try:
                out = torch.empty(B, T, H, 72, device="cuda", dtype=torch.bfloat16)
                run(q, k, v, out, cfg)
                torch.cuda.synchronize()
                err = e(out)
                ms = bench(lambda: run(q, k, v, out, cfg))
                print(f"  {cfg} {ms:.4f} ms {base / ms:.2f}x error {err:.5f}", flush=True)
            except Exception as x:
                print("  ", cfg, "failed", str(x)[:200], flush=True)
                if "CUDA" in str(x):
                    return


if __name__ == "__main__":
    compile_all() if "compile" in sys.argv else main()
