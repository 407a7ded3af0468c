"""Norm, rotation and concatenation in one: what diffusers computes in several steps.

The kernel is compared with the definition, interpreted on a CPU and compiled on CUDA.
"""

from importlib import import_module

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_ltx, transformer_qwenimage
from torch import nn

from viditq import ops
from viditq.ops import Stream, norm_rotate
from viditq.ops.norm_rotate import reference, signature

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6
HERE = [
    pytest.param("cpu", id="interpreted"),
    pytest.param("cuda", marks=pytest.mark.gpu, id="cuda"),
]


def angles(*shape, device="cpu"):
    """cos and sin, fp32, each number twice in the last dimension, which is doubled."""
    a = (torch.rand(shape, device=device) * 6).repeat_interleave(2, -1)
    return a.cos(), a.sin()


def by_pair(tables):
    """(S, D) each -> (1, S, 1, D/2)."""
    cos, sin = tables
    return cos[None, :, None, ::2], sin[None, :, None, ::2]


def of_joint_product(samples, tokens, heads, features, dtype=torch.float32, device="cpu"):
    """Keys (B, S, H, D) that lie between queries and values."""
    width = heads * features
    joint = torch.randn(samples, tokens, 3 * width, device=device).to(dtype)
    return joint[..., width : 2 * width].unflatten(-1, (heads, features))


def normed(kind, weight, x):
    """``x`` through a norm of diffusers or torch."""
    norm = kind(weight.shape[0], eps=EPS)
    norm.weight.data = weight
    with torch.no_grad():
        return norm(x)


def error(y, exact):
    return float((y.double() - exact).norm() / exact.norm())


class TestIsDiffusers:
    """In fp32 it is what they compute, in 16 bits it is closer to that than they are."""

    B, S, H, D = 2, 7, 3, 24

    def check(self, theirs, mine, x, weight):
        """Both are functions of ``x`` and the norm's weight."""
        exact = theirs(x, weight).double()
        torch.testing.assert_close(mine(x, weight).double(), exact, rtol=1e-5, atol=1e-6)
        for dtype in (torch.bfloat16, torch.float16):
            small, gain = x.to(dtype), weight.to(dtype)
            y = mine(small, gain)
            assert (y.dtype, y.shape) == (dtype, exact.shape)
            exact = theirs(small.float(), gain.float()).double()
            assert error(y, exact) <= error(theirs(small, gain), exact)

    def tensors(self, across=False):
        width = self.H * self.D if across else self.D
        return of_joint_product(self.B, self.S, self.H, self.D), torch.rand(width) + 0.5

    @pytest.mark.parametrize("kind", [nn.RMSNorm, RMSNorm])
    def test_heads_of_flux_and_hunyuan_video(self, kind):
        tables = angles(self.S, self.D // 2)

        def theirs(x, weight):
            return apply_rotary_emb(normed(kind, weight, x), tables, sequence_dim=1)

        def mine(x, weight):
            return norm_rotate(Stream(x, weight, EPS, by_pair(tables)))

        self.check(theirs, mine, *self.tensors())

    def test_across_heads_as_in_wan(self):
        tables = angles(1, self.S, 1, self.D // 2)

        def theirs(x, weight):
            y = normed(nn.RMSNorm, weight, x.flatten(2)).view(x.shape)
            return apply_rotary_emb(y, [t[0, :, 0] for t in tables], sequence_dim=1)

        def mine(x, weight):
            rotation = tables[0][..., ::2], tables[1][..., 1::2]
            return norm_rotate(Stream(x, weight, EPS, rotation), across=True)

        self.check(theirs, mine, *self.tensors(across=True))

    def test_angles_of_each_head_as_in_ltx(self):
        tables = angles(self.B, self.S, self.H * self.D // 2)

        def theirs(x, weight):
            y = normed(nn.RMSNorm, weight, x.flatten(2))
            return transformer_ltx.apply_rotary_emb(y, tables).view(x.shape)

        def mine(x, weight):
            cos, sin = (t.unflatten(-1, (self.H, self.D))[..., ::2] for t in tables)
            return norm_rotate(Stream(x, weight, EPS, (cos, sin)), across=True)

        self.check(theirs, mine, *self.tensors(across=True))

    def test_mean_and_bias_as_in_cogvideox(self):
        tables, bias = angles(self.S, self.D // 2), torch.randn(self.D)

        def theirs(x, weight):
            y = nn.functional.layer_norm(x, (self.D,), weight, bias.to(x.dtype), EPS)
            return apply_rotary_emb(y, tables, sequence_dim=1)

        def mine(x, weight):
            rotation = by_pair(tables)
            return norm_rotate(Stream(x, weight, EPS, rotation, bias.to(x.dtype), centred=True))

        x, weight = self.tensors()
        self.check(theirs, mine, x + 2, weight)

    def test_complex_numbers_as_in_qwen_image(self):
        turns = torch.polar(torch.ones(self.S, self.D // 2), torch.rand(self.S, self.D // 2) * 6)

        def theirs(x, weight):
            y = normed(RMSNorm, weight, x)
            return transformer_qwenimage.apply_rotary_emb_qwen(y, turns, use_real=False)

        def mine(x, weight):
            rotation = turns.real[None, :, None], turns.imag[None, :, None]
            return norm_rotate(Stream(x, weight, EPS, rotation))

        self.check(theirs, mine, *self.tensors())

    def test_two_streams(self):
        text, weight = torch.randn(self.B, 4, self.H, self.D), torch.rand(self.D) + 0.5
        tables = angles(self.S, self.D // 2)

        def theirs(x, own):
            x = apply_rotary_emb(normed(nn.RMSNorm, own, x), tables, sequence_dim=1)
            first = normed(nn.RMSNorm, weight.to(x.dtype), text.to(x.dtype))
            return torch.cat([first, x], 1)

        def mine(x, own):
            first = Stream(text.to(x.dtype), weight.to(x.dtype), EPS)
            return norm_rotate(first, Stream(x, own, EPS, by_pair(tables)))

        self.check(theirs, mine, *self.tensors())


def test_a_rotation_keeps_lengths_in_fp64():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    cos, sin = (t.double() for t in by_pair(angles(5, 4)))
    length = (cos.square() + sin.square()).sqrt()
    y = norm_rotate(Stream(x, rotation=(cos / length, sin / length)))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


def test_a_copy_without_gaps():
    x = of_joint_product(2, 3, 2, 5)
    y = norm_rotate(Stream(x))
    assert torch.equal(y, x)
    assert y.is_contiguous()
    assert y.data_ptr() != norm_rotate(Stream(y)).data_ptr()


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (Stream(torch.ones(2, 3, 8)), r"\(B, S, H, D\), not torch.float32 \(2, 3, 8\)"),
        (Stream(torch.ones(2, 3, 4, 8).int()), "floating-point"),
        (Stream(torch.ones(2, 3, 4, 8), torch.ones(32)), r"weight must have shape \(8,\)"),
        (Stream(torch.ones(2, 3, 4, 8), bias=torch.ones(32)), r"bias must have shape \(8,\)"),
        (
            Stream(torch.ones(2, 3, 4, 8), rotation=2 * (torch.ones(3, 8),)),
            r"cos must be \(2, 3, 4, 4\), or 1 in its place, not \(3, 8\)",
        ),
        (Stream(torch.ones(2, 3, 4, 8), rotation=2 * (torch.ones(1, 2, 1, 4),)), "cos must be"),
        (
            Stream(torch.ones(2, 3, 4, 8), rotation=(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 4))),
            "sin must be",
        ),
        (
            Stream(
                torch.ones(2, 3, 4, 8), rotation=(torch.ones(1, 3, 1, 4), torch.ones(2, 3, 1, 4))
            ),
            "the same shape",
        ),
        (Stream(torch.ones(2, 3, 4, 7), rotation=2 * (torch.ones(1, 3, 1, 3),)), "no pairs"),
    ],
)
def test_wrong_arguments(stream, words):
    with pytest.raises(ValueError, match=words):
        norm_rotate(stream)
    with pytest.raises(ValueError, match=words):
        norm_rotate(Stream(torch.ones(2, 3, 4, 8)), stream)


@pytest.mark.parametrize(
    "second", [torch.ones(2, 3, 4, 6), torch.ones(1, 3, 4, 8), torch.ones(2, 3, 4, 8).half()]
)
def test_streams_that_do_not_fit(second):
    with pytest.raises(ValueError, match="the same dtype, batch and heads"):
        norm_rotate(Stream(torch.ones(2, 3, 4, 8)), Stream(second))


def flat(first, second=None, *, across=False):
    """The arguments of the registered op."""
    first, second = (
        (s.x, s.weight, s.bias, s.eps, s.centred, *(s.rotation or (None, None)))
        for s in (first, second or Stream(None))
    )
    return (*first, across, *second)


@pytest.mark.parametrize("tokens", [0, 3])
def test_registration(tokens):
    x = of_joint_product(2, tokens, 2, 8).bfloat16()
    first = Stream(x, torch.rand(8), EPS, by_pair(angles(tokens, 4)))
    op = torch.ops.viditq.norm_rotate.default
    torch.library.opcheck(op, flat(first))
    torch.library.opcheck(op, flat(first, Stream(torch.randn(2, 4, 2, 8).bfloat16())))
    torch.library.opcheck(op, flat(Stream(x, torch.rand(16).half(), EPS), across=True))
    layer_norm = Stream(x, torch.rand(8), EPS, bias=torch.rand(8), centred=True)
    torch.library.opcheck(op, flat(layer_norm, layer_norm))


@pytest.fixture
def kernel(monkeypatch):
    """The op in Triton, its results filled with what no test expects before it writes them."""
    module = pytest.importorskip("viditq.ops.norm_rotate.triton")

    def filled(*arguments):
        return signature.empty_result(*arguments).fill_(torch.nan)

    monkeypatch.setattr(module, "empty_result", filled)
    return lambda *streams, **options: module.norm_rotate(*flat(*streams, **options))


@pytest.fixture(params=HERE)
def device(request):
    if request.param == "cpu" and not import_module("triton").knobs.runtime.interpret:
        pytest.skip("kernels are compiled, not interpreted, here")
    return request.param


def assert_same(mine, wanted):
    """Within a rounding of the dtype, and where the sum's order decides, within a few of fp32."""
    assert (mine.dtype, mine.shape) == (wanted.dtype, wanted.shape)
    assert mine.is_contiguous()
    step = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[mine.dtype]
    torch.testing.assert_close(
        mine.float(), wanted.float(), rtol=step, atol=2e-6, equal_nan=True, check_stride=False
    )


# One; heads that are not a power of two; features that are not; fewer of them than a vector has.
SHAPES = [(1, 1, 1, 2), (2, 3, 3, 24), (1, 5, 2, 72), (2, 2, 5, 64), (1, 2, 24, 128), (3, 2, 7, 10)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, which interprets, warns of NaN
class TestKernel:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("across", [False, True])
    def test_is_the_reference(self, kernel, device, shape, dtype, across):
        samples, tokens, heads, features = shape
        x = of_joint_product(*shape, dtype, device)
        weight = torch.rand(heads * features if across else features, device=device) + 0.5
        shared = by_pair(angles(tokens, features // 2, device=device))
        of_heads = angles(samples, tokens, heads, features // 2, device=device)
        of_heads = of_heads[0][..., ::2], of_heads[1][..., 1::2]
        for stream in (
            Stream(x, weight.to(dtype), EPS, shared),
            Stream(x, weight, EPS, of_heads),
            Stream(x, None, 1e-2, shared),
            Stream(x, weight, 1e-5),
            Stream(x + 3, weight, EPS, shared, weight.flip(0).to(dtype), centred=True),
            Stream(x - 3, None, EPS, centred=True),
            Stream(x, rotation=shared),
            Stream(x, weight),
            Stream(x),
        ):
            wanted = reference.norm_rotate(*flat(stream, across=across))
            assert_same(kernel(stream, across=across), wanted)

    def test_two_streams(self, kernel, device):
        """Each with its own norm and angles, and samples that lie apart."""
        text = of_joint_product(3, 4, 3, 24, torch.bfloat16, device)[:, 1:]
        image = of_joint_product(3, 5, 3, 24, torch.bfloat16, device)
        weights = torch.rand(2, 24, device=device) + 0.5
        tables = by_pair(angles(8, 12, device=device))
        for first, second in (
            (
                Stream(text, weights[0], 1e-2, [t[:, :3] for t in tables]),
                Stream(image, weights[1], 1e-6, [t[:, 3:] for t in tables]),
            ),
            (Stream(image, weights[0], EPS, [t[:, :5] for t in tables]), Stream(text, None, EPS)),
            (Stream(text), Stream(image)),
            (Stream(text[:, :0]), Stream(image, weights[0], EPS)),
            (Stream(text, weights[0], EPS), Stream(image[:, :0])),
        ):
            wanted = reference.norm_rotate(*flat(first, second))
            assert_same(kernel(first, second), wanted)

    def test_tables_of_other_layouts(self, kernel, device):
        """Complex numbers; halves; cosines and sines of different strides; fp64."""
        x = of_joint_product(2, 3, 2, 8, device=device)
        turns = torch.polar(torch.ones(3, 4), torch.rand(3, 4) * 6).to(device)[None, :, None]
        cos, sin = turns.real, turns.imag
        for rotation in (
            (cos, sin),
            (cos.half(), sin.half()),
            (cos.contiguous(), sin),
            (cos.double(), sin.double()),
            (cos.expand(2, -1, 2, -1), sin.expand(2, -1, 2, -1).contiguous()),
        ):
            stream = Stream(x, rotation=rotation)
            assert_same(kernel(stream), reference.norm_rotate(*flat(stream)))

    def test_heads_that_lie_apart_are_copied(self, kernel, device):
        x = torch.randn(2, 3, 5, 8, device=device).transpose(1, 2)
        assert_same(
            kernel(Stream(x, None, EPS)), reference.norm_rotate(*flat(Stream(x, None, EPS)))
        )

    def test_what_is_not_finite_stays_with_its_head(self, kernel, device):
        x = torch.randn(1, 4, 3, 8, device=device)
        clean = kernel(Stream(x, None, EPS))
        x[0, 1, 0, 3], x[0, 2, 1, 0], x[0, 3] = torch.nan, torch.inf, 0
        wanted = reference.norm_rotate(*flat(Stream(x, None, EPS)))
        mine = kernel(Stream(x, None, EPS))
        assert_same(mine, wanted)
        assert mine[0, 1, 0].isnan().all()
        assert torch.equal(mine[0, 1, 1:], clean[0, 1, 1:])
        assert not mine[0, 3].any()

    def test_what_only_the_reference_computes(self, kernel, device):
        x = torch.randn(2, 3, 2, 8, dtype=torch.float64, device=device)
        wide = torch.randn(1, 2, 300, 200, device=device)
        for stream in (Stream(x, None, EPS), Stream(wide, None, EPS)):
            assert torch.equal(kernel(stream), reference.norm_rotate(*flat(stream)))
        assert kernel(Stream(x.float()[:, :0], None, EPS)).shape == (2, 0, 2, 8)


def real_cases():
    """Streams of the models' sizes, bf16."""

    def case(heads, across, *lengths):
        def make():
            streams = []
            for length in lengths:
                x = of_joint_product(1, length, heads, 128, torch.bfloat16, "cuda")
                weight = torch.rand(heads * 128 if across else 128, device="cuda") + 0.5
                tables = by_pair(angles(length, 64, device="cuda"))
                streams.append(Stream(x, weight.bfloat16(), EPS, tables))
            return streams, {"across": across}

        return make

    yield pytest.param(case(24, False, 4608), id="FLUX-single")
    yield pytest.param(case(24, False, 512, 4096), id="FLUX-double")
    yield pytest.param(case(12, True, 32760), id="Wan-1.3B")
    yield pytest.param(case(40, True, 32760), id="Wan-14B")

    def layer_norm():
        x = of_joint_product(1, 17776, 30, 64, torch.bfloat16, "cuda")
        weight, bias = torch.rand(2, 64, device="cuda").bfloat16()
        return [Stream(x, weight, EPS, None, bias, centred=True)], {}

    yield pytest.param(layer_norm, id="CogVideoX-2B")


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(real_cases()))
class TestOnCuda:
    def test_is_the_reference_twice(self, case, kernel):
        streams, options = case()
        mine, again = (kernel(*streams, **options) for _ in range(2))
        assert_same(mine, reference.norm_rotate(*flat(*streams, **options)))
        assert torch.equal(mine, again)

    def test_compiled(self, case):
        streams, options = case()
        torch.compiler.reset()
        compiled = torch.compile(lambda *s: norm_rotate(*s, **options), fullgraph=True)
        with ops.use_backend("triton"):
            assert torch.equal(compiled(*streams), norm_rotate(*streams, **options))

    def test_in_a_graph(self, case):
        streams, options = case()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            norm_rotate(*streams, **options)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = norm_rotate(*streams, **options)
        streams[0].x.copy_(torch.randn_like(streams[0].x))
        graph.replay()
        assert torch.equal(captured, norm_rotate(*streams, **options))

    def test_allocates_its_result_alone(self, case):
        streams, options = case()
        norm_rotate(*streams, **options)
        # Counted in pieces: a piece may be larger than what was asked for.
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        norm_rotate(*streams, **options)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == 1
