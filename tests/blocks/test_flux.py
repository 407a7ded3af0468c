"""Fused blocks of FLUX compute what their layers would, or leave it to them."""

import copy
import pickle

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers import transformer_flux
from torch import nn

import tiny
from viditq import checkpoint
from viditq.bench.random_models import build, quantize_random_
from viditq.blocks import fuse_, unfuse_
from viditq.blocks.inputs import Gelu
from viditq.blocks.products import finish
from viditq.calibration import (
    CalibrationInfo,
    CalibrationSet,
    model_fingerprint,
    observe,
    observe_gradients,
)
from viditq.convert import quantize_
from viditq.nn import FP32_TENSORS
from viditq.ops.joint_linear import reference
from viditq.plan import LayerPlan
from viditq.planning import make_plan
from viditq.recipe import load_recipe

KINDS = ["double", "single"]
PLANS = {
    "w8a8": LayerPlan(smooth=0.5, hadamard=16),
    "w8a8-unbalanced": LayerPlan(),
    "w8a8-centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16),
    "w4a8": LayerPlan(weight="int4", smooth=0.5, hadamard=16),
}
FUSED = {
    "double": {
        **{"norm_quantize": 4, "norm_rotate": 2},
        **{"quantize_rows": 2, "gelu_quantize": 2, "int8_linear": 8},
    },
    "single": {"norm_quantize": 1, "norm_rotate": 2, "gelu_quantize": 1, "int8_linear": 2},
}
DROP_IN = {
    "double": {"quantize_rows": 12, "int8_linear": 12},
    "single": {"quantize_rows": 5, "int8_linear": 5},
}
# A layer with company on its input, one that a product finishes with, one behind a GELU.
LAYERS = [
    ("double", "attn.to_k"),
    ("double", "attn.add_q_proj"),
    ("double", "attn.to_out.0"),
    ("double", "attn.to_add_out"),
    ("double", "ff.net.2"),
    ("double", "ff_context.net.0.proj"),
    ("single", "attn.to_v"),
    ("single", "proj_mlp"),
    ("single", "proj_out"),
]
SHARED = ("attn.to_k", "attn.add_q_proj", "attn.to_v", "proj_mlp")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(block: nn.Module, inputs: dict) -> torch.Tensor:
    """Both streams end to end, (B, T + S, C)."""
    with torch.no_grad():
        return torch.cat(block(**inputs), 1)


def make(dtype=torch.float32) -> nn.Module:
    return build("FluxTransformer2DModel", tiny.flux_config(), torch.device("cpu"), dtype)


def denoise(model: nn.Module, dtype=torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny.flux_inputs(dtype))[0].float()


@pytest.mark.parametrize("plan", PLANS)
class TestDenoiser:
    def test_fused_is_drop_in_but_for_a_few_codes(self, plan):
        model = quantize_random_(make(), PLANS[plan])
        expected = denoise(model)
        assert fuse_(model) == 5
        assert distance(denoise(model), expected) <= 1e-3
        assert unfuse_(model) == 5
        assert torch.equal(denoise(model), expected)

    def test_in_bf16_it_is_no_farther_from_fp32_than_drop_in(self, plan):
        exact = denoise(quantize_random_(make(torch.bfloat16).float(), PLANS[plan]))
        model = quantize_random_(make(torch.bfloat16), PLANS[plan])
        drop_in = distance(denoise(model, torch.bfloat16), exact)
        fuse_(model)
        assert distance(denoise(model, torch.bfloat16), exact) <= 1.1 * drop_in


@pytest.mark.parametrize("preset", ["w8a8", "w4a8"])
def test_from_recorded_calls_to_a_fused_checkpoint(tmp_path, preset):
    """The way that a pipeline goes, with the transformer alone."""
    model, inputs = make(), {k: v for k, v in tiny.flux_inputs().items() if k != "return_dict"}
    info = CalibrationInfo(
        source="tiny",
        model=model_fingerprint(model),
        prompts=("a",),
        num_steps=1,
        steps=(0,),
        guidance=1.0,
        seed=0,
    )
    recorded = CalibrationSet.create(tmp_path / "calls", info)
    recorded.write_prompt(0, [(0, inputs)])
    stats = observe(model, recorded, tmp_path / "stats", rows=28)
    gradients = observe_gradients(model, recorded, tmp_path / "gradients")
    plan, exact = make_plan(model, load_recipe(preset), stats, gradients), denoise(model)
    diagnostics = quantize_(model, plan, stats, gradients)
    expected = denoise(model)
    assert 0 < distance(expected, exact) <= (0.01 if preset == "w8a8" else 0.1)
    checkpoint.save(model, tmp_path / "saved", plan, diagnostics=diagnostics)
    assert torch.equal(denoise(checkpoint.load(tmp_path / "saved", fuse=False)), expected)
    fused = checkpoint.load(tmp_path / "saved", fuse=True)
    assert "FusedFluxSingleTransformerBlock" in repr(fused)
    assert distance(denoise(fused), expected) <= 1e-3


@pytest.mark.parametrize("kind", KINDS)
class TestBlock:
    @pytest.mark.parametrize("plan", PLANS)
    def test_computes_what_its_layers_would(self, make_flux, flux_inputs, count_ops, kind, plan):
        """Ops are counted, so that a block that silently falls back fails.

        A code may flip, as in test_basic, behind the last norm most often: then in one token.
        """
        block = make_flux(kind, PLANS[plan])
        expected = run(block, flux_inputs)
        product = "int4_linear" if plan == "w4a8" else "int8_linear"
        counts = {product if k == "int8_linear" else k: n for k, n in DROP_IN[kind].items()}
        assert count_ops(block, **flux_inputs) == counts
        assert fuse_(block) == 1
        fused = run(block, flux_inputs)
        assert fused.shape == expected.shape
        assert distance(fused, expected) <= 1e-3
        assert ((fused - expected).abs().amax(-1) > 1e-5 * expected.abs().amax()).sum() <= 1
        counts = {product if k == "int8_linear" else k: n for k, n in FUSED[kind].items()}
        assert count_ops(block, **flux_inputs) == counts

    def test_without_positions(self, make_flux, flux_inputs, kind):
        block = make_flux(kind)
        with_positions = run(block, flux_inputs)
        del flux_inputs["image_rotary_emb"]
        expected = run(block, flux_inputs)
        fuse_(block)
        assert distance(run(block, flux_inputs), expected) <= 1e-5
        assert distance(with_positions, expected) > 1e-3

    def test_empty_kwargs_and_arguments_by_position(self, make_flux, flux_inputs, kind):
        block = make_flux(kind)
        fuse_(block)
        expected = run(block, flux_inputs)
        with torch.no_grad():
            assert torch.equal(torch.cat(block(*flux_inputs.values(), {}), 1), expected)

    def test_clips_half_precision_as_the_original(self, make_flux, flux_inputs, kind):
        """A text token at the edge of the range comes out at its edge, not infinite."""
        block = make_flux(kind)
        norm = block.norm if kind == "single" else block.norm1_context
        norm.linear.bias.data[-32:] = 1000.0  # the last gate
        for name, parameter in block.named_parameters():
            if name.rpartition(".")[2] not in FP32_TENSORS and parameter.is_floating_point():
                parameter.data = parameter.data.half()
        inputs = {k: v.half() for k, v in flux_inputs.items() if k != "image_rotary_emb"}
        inputs["encoder_hidden_states"][:, 0] = inputs["encoder_hidden_states"][:, 0].sign() * 65000
        expected = run(block, inputs)[:, :5]
        fuse_(block)
        text = run(block, inputs)[:, :5]
        assert text.isfinite().all()
        assert text.abs().max() == expected.abs().max() == 65504
        assert distance(text.float(), expected.float()) <= 2e-2

    def test_attention_runs_where_it_is_set_to(self, make_flux, flux_inputs, count_ops, kind):
        block = make_flux(kind)
        fuse_(block)
        expected = run(block, flux_inputs)
        block.attn.set_attention_backend("_native_math")
        assert distance(run(block, flux_inputs), expected) <= 1e-3
        assert count_ops(block, **flux_inputs) == FUSED[kind]
        seen = []

        def watched(q, k, v, **options):
            seen.append(options["backend"])
            return q

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("viditq.blocks.streams.dispatch_attention_fn", watched)
            run(block, flux_inputs)
        assert [str(getattr(each, "value", each)) for each in seen] == ["_native_math"]


class TestSomethingOnALayer:
    """That layer is called as a module with its float input; the others stay fused."""

    @pytest.fixture(params=LAYERS, ids="-".join)
    def case(self, request):
        return request.param

    def compare(self, make_flux, inputs, case, change):
        """The effect of ``change(block)`` on a drop-in and a fused block."""
        expected, fused = make_flux(case[0]), make_flux(case[0])
        before = run(expected, inputs)
        change(expected)
        fuse_(fused)
        change(fused)
        y = run(fused, inputs)
        assert distance(y, run(expected, inputs)) <= 1e-5
        assert distance(y, before) > 1e-3
        return fused

    def test_wrapper(self, make_flux, flux_inputs, count_ops, case):
        """As PEFT wraps a layer for a LoRA."""
        kind, name = case

        class Wrapper(nn.Module):
            def __init__(self, base_layer):
                super().__init__()
                self.base_layer = base_layer
                torch.manual_seed(3)
                self.lora = nn.Linear(base_layer.in_features, base_layer.out_features)

            def forward(self, x):
                return self.base_layer(x) + self.lora(x)

        def wrap(block):
            block.set_submodule(name, Wrapper(block.get_submodule(name)))

        fused = self.compare(make_flux, flux_inputs, case, wrap)
        # One more product if the others that read the input keep theirs.
        products = FUSED[kind]["int8_linear"] + (name in SHARED)
        assert count_ops(fused, **flux_inputs)["int8_linear"] == products
        fused.set_submodule(name, fused.get_submodule(name).base_layer)
        assert count_ops(fused, **flux_inputs) == FUSED[kind]

    def test_hook(self, make_flux, flux_inputs, count_ops, case):
        kind, name = case
        handles = []

        def hook(block):
            layer = block.get_submodule(name)
            # Not twice the output, which a norm of the heads would take back.
            handles.append(layer.register_forward_hook(lambda module, args, y: y.flip(-1)))

        fused = self.compare(make_flux, flux_inputs, case, hook)
        handles[-1].remove()
        assert count_ops(fused, **flux_inputs) == FUSED[kind]

    def test_hook_before_sees_the_original_input(self, make_flux, flux_inputs, case):
        """The same tensor in the same shape, to the last bit where no fused norm came before."""
        kind, name = case
        seen = []

        def watch(block):
            layer = block.get_submodule(name)
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

        expected, fused = make_flux(kind), make_flux(kind)
        watch(expected)
        fuse_(fused)
        watch(fused)
        run(expected, flux_inputs)
        run(fused, flux_inputs)
        assert seen[0].shape == seen[1].shape
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)
        if name in SHARED:
            assert torch.equal(seen[0], seen[1])

    def test_float_layer(self, make_flux, flux_inputs, count_ops, case):
        kind, name = case
        block = make_flux(kind, plans={name: None})
        expected = run(block, flux_inputs)
        assert fuse_(block) == 1
        assert distance(run(block, flux_inputs), expected) <= 1e-5
        fewer = name not in SHARED  # a product of its own
        assert count_ops(block, **flux_inputs)["int8_linear"] == FUSED[kind]["int8_linear"] - fewer

    def test_static_activations(self, make_flux, flux_inputs, count_ops, case):
        kind, name = case
        block = make_flux(kind, plans={name: LayerPlan(granularity="tensor")})
        expected = run(block, flux_inputs)
        assert fuse_(block) == 1
        assert distance(run(block, flux_inputs), expected) <= 1e-5
        own = name in SHARED  # codes and a product of its own, beside those of the others
        counts, before = count_ops(block, **flux_inputs), FUSED[kind]
        assert sum(counts.values()) == sum(before.values()) + 2 * own

    def test_layers_of_the_modulation_may_be_hooked(self, make_flux, flux_inputs, count_ops):
        """They are float, and called as modules."""

        def hook(block):
            block.norm.linear.register_forward_hook(lambda module, args, y: 2 * y)

        fused = self.compare(make_flux, flux_inputs, ("single", ""), hook)
        assert count_ops(fused, **flux_inputs) == FUSED["single"]

    @pytest.mark.parametrize(
        "other, norms, products",
        [
            (LayerPlan(activation="int6", smooth=0.5, hadamard=16), 2, 3),
            (LayerPlan(weight="int4", smooth=0.5, hadamard=16), 1, 2),
            (LayerPlan(smooth=0.5), 2, 3),
        ],
    )
    def test_readers_that_differ(self, make_flux, flux_inputs, count_ops, other, norms, products):
        """Another format of weights needs a product of its own; other bits, codes of their own."""
        block = make_flux("single", plans={"proj_mlp": other})
        expected = run(block, flux_inputs)
        assert fuse_(block) == 1
        assert distance(run(block, flux_inputs), expected) <= 1e-5
        counts = count_ops(block, **flux_inputs)
        assert (counts["norm_quantize"], counts["int8_linear"]) == (norms, products)
        assert counts.get("int4_linear", 0) == (other.weight == "int4")


class TestDeclined:
    """The block as a whole takes its original forward: bit by bit, with none of the fused ops."""

    def check(self, block, kind, inputs, count_ops, change=lambda block: None):
        expected = copy.deepcopy(block)
        change(expected)
        assert fuse_(block) == 1
        change(block)
        assert torch.equal(run(block, inputs), run(expected, inputs))
        assert count_ops(block, **inputs) == DROP_IN[kind]

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            *(("double", f"{n}{c}") for n in ("norm1", "norm2", "ff") for c in ("", "_context")),
            *(("double", n) for n in ("norm1.norm", "attn", "attn.to_out.1", "ff.net.0")),
            *(("single", n) for n in ("norm", "norm.norm", "attn", "act_mlp")),
        ],
    )
    def test_hook_on_a_submodule(self, make_flux, flux_inputs, count_ops, kind, name):
        def twice(module, args, y):
            return tuple(2 * each for each in y) if isinstance(y, tuple) else 2 * y

        def hook(block):
            block.get_submodule(name).register_forward_hook(twice)

        self.check(make_flux(kind), kind, flux_inputs, count_ops, hook)

    @pytest.mark.parametrize("kind", KINDS)
    def test_attention_processor(self, make_flux, flux_inputs, count_ops, kind):
        class Other(transformer_flux.FluxAttnProcessor):
            pass

        def change(block):
            block.attn.set_processor(Other())

        self.check(make_flux(kind), kind, flux_inputs, count_ops, change)
        block = make_flux(kind)
        block.attn.processor = AttnProcessor()
        assert fuse_(block) == 0

    def test_projections_that_diffusers_fused(self, make_flux):
        """It copies their weights into layers of its own."""
        block = make_flux("double", None, {"ff.net.2": LayerPlan()})
        block.attn.fuse_projections()
        assert fuse_(block) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_joint_attention_kwargs(self, make_flux, flux_inputs, count_ops, kind):
        flux_inputs["joint_attention_kwargs"] = {"ip_adapter_masks": None}
        self.check(make_flux(kind), kind, flux_inputs, count_ops)

    def test_active_dropout(self, make_flux, flux_inputs, count_ops):
        block = make_flux("double")
        block.ff_context.net[1].p = 0.5
        fuse_(block)
        assert count_ops(block, **flux_inputs) == FUSED["double"]
        assert count_ops(block.train(), **flux_inputs) == DROP_IN["double"]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["hidden_states", "encoder_hidden_states"])
    def test_gradient(self, make_flux, flux_inputs, kind, name):
        """Integer products have none; the original forward passes it along the residual."""
        block = make_flux(kind)
        fuse_(block)
        flux_inputs[name].requires_grad_()
        y = torch.cat(block(**flux_inputs), 1)
        with pytest.warns(UserWarning, match="autograd kernel was not registered"):
            y.sum().backward()
        assert flux_inputs[name].grad.abs().min() > 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks_that_are_not_fused(self, make_flux, kind):
        block = make_flux(kind)
        block.forward = lambda **arguments: None  # wraps the original one already
        assert fuse_(block) == 0
        assert fuse_(make_flux(kind, None)) == 0
        block = make_flux(kind)
        block.attn.to_v.smooth.data *= 2  # no plan makes this
        assert fuse_(block) == 0


@pytest.mark.parametrize("kind", KINDS)
class TestStaysAModule:
    def test_class_name_state_and_hooks(self, make_flux, flux_inputs, kind):
        """By the name, diffusers knows what to compile, to keep together and to offload."""
        block = make_flux(kind)
        block.register_forward_hook(lambda module, args, y: (2 * y[0], y[1]))
        original, before = type(block), block.state_dict()
        expected = run(block, flux_inputs)
        assert (fuse_(block), fuse_(block)) == (1, 0)
        assert isinstance(block, original)
        assert type(block).__name__ == original.__name__
        assert repr(block).startswith(f"Fused{original.__name__}(")
        assert distance(run(block, flux_inputs), expected) <= 1e-5
        after = block.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert (unfuse_(block), unfuse_(block)) == (1, 0)
        assert type(block) is original
        assert torch.equal(run(block, flux_inputs), expected)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
    def test_copies_are_fused_and_independent(
        self, make_flux, flux_inputs, count_ops, kind, duplicate
    ):
        block = make_flux(kind)
        fuse_(block)
        expected = run(block, flux_inputs)
        twin = duplicate(block)
        assert torch.equal(run(twin, flux_inputs), expected)
        assert count_ops(twin, **flux_inputs) == FUSED[kind]
        twin.attn.to_q.weight.data.zero_()
        assert torch.equal(run(block, flux_inputs), expected)
        assert not torch.equal(run(twin, flux_inputs), expected)

    @pytest.mark.parametrize("weight", ["int8", "int6", "int4"])
    def test_compiles_into_one_graph(self, make_flux, flux_inputs, kind, weight):
        block = make_flux(kind, LayerPlan(weight=weight, smooth=0.5, hadamard=16))
        fuse_(block)
        self.compare_compiled(block, flux_inputs)

    def test_compiles_into_one_graph_with_layers_that_are_not_fused(
        self, make_flux, flux_inputs, kind
    ):
        last = "proj_out" if kind == "single" else "ff.net.2"
        block = make_flux(kind, plans={"attn.to_k": None, last: LayerPlan(granularity="tensor")})
        block.attn.to_v.register_forward_hook(lambda module, args, y: 2 * y)
        fuse_(block)
        self.compare_compiled(block, flux_inputs)

    @pytest.mark.parametrize("weight", ["int8", "int4"])
    def test_compiled_code_copies_no_weights(
        self, make_flux, flux_inputs, monkeypatch, kind, weight
    ):
        """They lie side by side from the start, where the op finds them."""
        block = make_flux(kind, LayerPlan(weight=weight, smooth=0.5, hadamard=16))
        fuse_(block)
        found, look = [], reference.side_by_side

        def watched(parts):
            found.append(look(parts))
            return found[-1]

        monkeypatch.setattr(reference, "side_by_side", watched)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        y = run(compiled, flux_inputs)
        assert len(found) == {"double": 6, "single": 3}[kind]  # weights, scales, biases
        assert all(view is not None for view in found)
        assert torch.equal(y, run(block, flux_inputs))

    def compare_compiled(self, block, inputs):
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, inputs), expected)


def test_gelu_with_columns_on_the_left(make_flux):
    """Bit by bit what the layer makes of the tensor that it would get."""
    layer = make_flux("single").proj_out
    wide, residual, gate = torch.randn(2, 7, 150), torch.randn(2, 7, 32), torch.randn(2, 32)
    x = Gelu(wide[..., 11:139], "tanh", left=torch.randn(2, 7, 32))
    assert torch.equal(
        finish(x, layer, residual, gate), gate[:, None] * layer(x.values()) + residual
    )
    assert x.values().shape == (2, 7, 160)
    assert torch.equal(x.values()[..., :32], x.left)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
class TestOnCuda:
    @pytest.fixture
    def on_cuda(self, make_flux, flux_inputs, kind):
        """A fused block and its inputs."""
        block = make_flux(kind).cuda()
        fuse_(block)
        rotary = tuple(each.cuda() for each in flux_inputs.pop("image_rotary_emb"))
        moved = {name: value.cuda() for name, value in flux_inputs.items()}
        return block, {**moved, "image_rotary_emb": rotary}

    def test_is_the_block_on_the_cpu(self, make_flux, on_cuda, kind):
        """With a flip or two: one is 1/127 of a row in one of 32 channels of one of 22 tokens."""
        block, inputs = on_cuda
        rotary = tuple(each.cpu() for each in inputs["image_rotary_emb"])
        on_cpu = {k: v.cpu() for k, v in inputs.items() if k != "image_rotary_emb"}
        expected = run(make_flux(kind), {**on_cpu, "image_rotary_emb": rotary})
        assert distance(run(block, inputs).cpu(), expected) <= 5e-3

    def test_in_a_cuda_graph(self, on_cuda):
        block, inputs = on_cuda
        expected = run(block, inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(block, inputs)
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)

    def test_compiled(self, on_cuda):
        block, inputs = on_cuda
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, fullgraph=True)
        assert distance(run(compiled, inputs), expected) <= 5e-3


def test_diffusers_caches_know_fused_blocks():
    """They look blocks up by their class."""
    from diffusers import FirstBlockCacheConfig

    outputs = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = tiny.flux(layers=2, single_layers=2).eval()
        quantize_random_(model, LayerPlan(smooth=0.5, hadamard=16))
        assert not fused or fuse_(model) == 4
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with torch.no_grad(), model.cache_context("cond"):
            outputs.append([model(**tiny.flux_inputs())[0] for _ in range(2)])
    assert distance(outputs[1][0], outputs[0][0]) <= 1e-4
    assert distance(outputs[1][1], outputs[1][0]) <= 1e-4  # from the cache
