"""Attention: torch's is the definition, and the kernel for Hopper is compared with it in fp32."""

import pytest
import torch
import torch.nn.functional as F

from viditq.ops import attention, use_backend
from viditq.ops.attention import gains_by_kernel, reference

DTYPES = [torch.bfloat16, torch.float16]


def heads(samples, queries, keys, count, features=72, dtype=torch.float32, device="cpu"):
    """Views of a joint product, (B, S or T, H, D)."""
    torch.manual_seed(0)
    tokens = max(queries, keys)
    joint = torch.randn(samples, tokens, 3, count, features, device=device).to(dtype)
    return joint[:, :queries, 0], joint[:, :keys, 1], joint[:, :keys, 2]


def exact(q, k, v, bias=None):
    """Written out, in fp64."""
    q, k, v = (each.double().transpose(1, 2) for each in (q, k, v))
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if bias is not None:
        scores += bias.double()[:, None, None]
    return (scores.softmax(3) @ v).transpose(1, 2)


def error(y, wanted):
    return float((y.double() - wanted).norm() / wanted.norm())


class TestOp:
    @pytest.mark.parametrize("features", [8, 64, 72])
    def test_is_attention(self, features):
        qkv = heads(2, 5, 7, 3, features)
        y = attention(*qkv)
        assert y.shape == qkv[0].shape
        assert y.is_contiguous()
        assert error(y, exact(*qkv)) < 1e-6

    def test_bias(self):
        q, k, v = heads(2, 5, 7, 3)
        bias = torch.randn(2, 7)
        bias[0, 3:] = -10000.0
        bias[1, :2] = -float("inf")
        y = attention(q, k, v, bias)
        assert error(y, exact(q, k, v, bias)) < 1e-6
        assert torch.allclose(
            y[:1], attention(q[:1], k[:1, :3], v[:1, :3], bias[:1, :3]), atol=1e-6
        )

    @pytest.mark.parametrize("bias", [torch.zeros(2, 6), torch.zeros(7), torch.ones(2, 7).bool()])
    def test_a_bias_that_does_not_fit(self, bias):
        with pytest.raises(ValueError, match=r"bias must be floating-point \(2, 7\)"):
            attention(*heads(2, 5, 7, 3), bias)

    def test_follows_the_rules_of_torch(self):
        torch.library.opcheck(torch.ops.viditq.attention.default, (*heads(2, 5, 7, 3), None))

    def test_compiled(self):
        qkv = heads(2, 5, 7, 3)
        compiled = torch.compile(attention, fullgraph=True, backend="eager")
        assert torch.equal(compiled(*qkv), attention(*qkv))

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((1, 4, 2, 8), (1, 4, 2, 8), (1, 5, 2, 8)), "k and v"),
            (((1, 4, 2, 8), (1, 0, 2, 8), (1, 0, 2, 8)), "with a key at least"),
            (((1, 4, 16), (1, 4, 16), (1, 4, 16)), r"q must be \(B, S, H, D\)"),
            (((1, 4, 2, 8), (2, 4, 2, 8), (2, 4, 2, 8)), "same batch, heads and width"),
            (((1, 4, 2, 8), (1, 4, 1, 8), (1, 4, 1, 8)), "same batch, heads and width"),
        ],
    )
    def test_shapes_that_do_not_fit(self, shapes, message):
        with pytest.raises(ValueError, match=message):
            attention(*(torch.zeros(shape) for shape in shapes))

    def test_dtypes_that_do_not_fit(self):
        q, k, v = heads(1, 4, 4, 2)
        with pytest.raises(ValueError, match="one floating dtype"):
            attention(q.half(), k, v)

    def test_nothing_is_gained_on_a_cpu(self):
        q, k, _ = heads(1, 1024, 128, 1, dtype=torch.bfloat16)
        assert not gains_by_kernel(q, k)


@pytest.fixture
def hopper():
    """What says which arguments the kernel takes, and the kernel."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs sm_90")
    from viditq.ops.attention import hopper

    return hopper


@pytest.mark.gpu
class TestOnHopper:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape",
        [
            (2, 4096, 4096, 16),  # PixArt-Σ 1024²
            (2, 4096, 300, 16),
            (3, 1024, 1024, 16),  # Latte, three frames
            (1, 1025, 129, 3),
            (2, 1279, 128, 1),
            (1, 1536, 191, 5),
        ],
    )
    def test_is_as_exact_as_torch(self, hopper, shape, dtype):
        qkv = heads(*shape, dtype=dtype, device="cuda")
        assert hopper.takes(*qkv)
        y, wanted = attention(*qkv), exact(*qkv)
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert error(y, wanted) < 1.05 * error(reference.attention(*qkv), wanted)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_captions_of_various_lengths(self, hopper, dtype):
        """Masked by a large negative number, as diffusers does, or by -inf, whole steps of them."""
        q, k, v = heads(3, 4096, 300, 16, dtype=torch.bfloat16, device="cuda")
        bias = torch.randn(3, 300, device="cuda").to(dtype)
        bias[0, 20:] = -10000.0
        bias[1, 70:] = -float("inf")
        bias[2, 64:128] = -float("inf")
        assert hopper.takes(q, k, v, bias)
        y, wanted = attention(q, k, v, bias), exact(q, k, v, bias)
        assert error(y, wanted) < 1.05 * error(reference.attention(q, k, v, bias), wanted)

    def test_two_runs_are_equal(self, hopper):
        qkv = heads(2, 1111, 777, 4, dtype=torch.bfloat16, device="cuda")
        assert torch.equal(attention(*qkv), attention(*qkv))

    def test_large_scores(self, hopper):
        q, k, v = heads(1, 1024, 640, 2, dtype=torch.bfloat16, device="cuda")
        y = attention(q * 30, k * 30, v)
        assert error(y, exact(q * 30, k * 30, v)) < 0.01

    def test_what_is_not_finite_stays_in_its_row_and_head(self, hopper):
        q, k, v = heads(1, 1100, 200, 2, dtype=torch.bfloat16, device="cuda")
        wanted = attention(q, k, v)
        q = q.clone()
        q[0, 7, 1, 3] = float("nan")
        y = attention(q, k, v)
        assert y[0, 7, 1].isnan().all()
        y[0, 7, 1] = wanted[0, 7, 1]
        assert torch.equal(y, wanted)

    @pytest.mark.parametrize("layout", ["dense", "heads first", "at an odd place", "broadcast"])
    def test_layouts(self, hopper, layout):
        """Those that TMA cannot address are left to torch."""
        q, k, v = heads(2, 1030, 300, 2, dtype=torch.bfloat16, device="cuda")
        if layout == "dense":
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        elif layout == "heads first":
            q = q.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "at an odd place":
            q = F.pad(q, (1, 7))[..., 1:73]
        else:
            k, v = k[:1].expand_as(k), v[:1].expand_as(v)
        assert hopper.takes(q, k, v) == (layout in ("dense", "heads first"))
        if layout == "at an odd place":  # where torch, too, is wrong; see dev/LOG.md
            assert torch.equal(attention(q, k, v), reference.attention(q, k, v))
        else:
            assert error(attention(q, k, v), exact(q, k, v)) < 0.003

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((1, 1023, 512, 2), torch.bfloat16),
            ((1, 1024, 127, 2), torch.bfloat16),
            ((1, 1024, 512, 2, 64), torch.bfloat16),
            ((1, 1024, 512, 2), torch.float32),
        ],
    )
    def test_what_is_left_to_torch(self, hopper, shape, dtype):
        qkv = heads(*shape, dtype=dtype, device="cuda")
        assert not hopper.takes(*qkv)
        assert torch.equal(attention(*qkv), reference.attention(*qkv))

    def test_other_backends_are_torch(self, hopper):
        qkv = heads(1, 1024, 512, 2, dtype=torch.bfloat16, device="cuda")
        with use_backend("triton"):
            assert torch.equal(attention(*qkv), reference.attention(*qkv))

    def test_compiled(self, hopper):
        qkv = heads(1, 1024, 512, 2, dtype=torch.bfloat16, device="cuda")
        torch.compiler.reset()
        assert torch.equal(torch.compile(attention, fullgraph=True)(*qkv), attention(*qkv))

    def test_in_a_graph(self, hopper):
        qkv = heads(1, 1024, 512, 2, dtype=torch.bfloat16, device="cuda")
        wanted = attention(*qkv)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = attention(*qkv)
        y.zero_()
        graph.replay()
        assert torch.equal(y, wanted)
