"""A fused block computes what its layers would, with the ops it should, or leaves it to them."""

import copy
import pickle

import pytest
import torch
from diffusers.models import attention
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from viditq.blocks import fuse_, is_faster, unfuse_
from viditq.plan import LayerPlan

PRESETS = ["w8a8", "w6a6", "w4a8"]
QMAX = {"w8a8": 127, "w6a6": 31, "w4a8": 127}

WITH_CAPTIONS = {"norm_quantize": 2, "quantize_rows": 4, "gelu_quantize": 1, "int8_linear": 7}
WITHOUT_CAPTIONS = {"norm_quantize": 2, "quantize_rows": 1, "gelu_quantize": 1, "int8_linear": 4}
DROP_IN = {"quantize_rows": 10, "int8_linear": 10}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(block: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return block(**inputs)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["image", "video"])
class TestDenoiser:
    def test_fused_is_drop_in_but_for_a_few_codes(self, denoiser, outputs, kind, preset):
        """Sums inside the norm have another order, so values move by some 1e-7 of their size.

        That moves a code only when the value lies so near to a tie: there are some 10⁵ codes in
        all calls, so a flip or two. One is ``1/qmax`` of the row's range in one of 32 channels of
        one of 32 tokens or more: below 1e-3 of one call's output in 8 bits.
        """
        model = denoiser(kind, preset)
        expected = outputs(model, kind)
        blocks = 2 if kind == "video" else len(model.transformer_blocks)
        assert fuse_(model) == blocks
        fused = outputs(model, kind)
        assert distance(fused, expected) <= 1e-3 * 127 / QMAX[preset]
        assert unfuse_(model) == blocks
        assert torch.equal(outputs(model, kind), expected)

    def test_in_bf16_it_is_no_farther_from_fp32_than_drop_in(self, denoiser, outputs, kind, preset):
        exact = outputs(denoiser(kind, preset), kind)
        model = denoiser(kind, preset, torch.bfloat16)
        drop_in = distance(outputs(model, kind, torch.bfloat16), exact)
        fuse_(model)
        assert distance(outputs(model, kind, torch.bfloat16), exact) <= 1.1 * drop_in


class TestOps:
    """Counted, so that a block that silently falls back fails."""

    def test_with_captions(self, make_block, inputs, count_ops):
        block = make_block()
        assert count_ops(block, **inputs) == DROP_IN
        fuse_(block)
        assert count_ops(block, **inputs) == WITH_CAPTIONS

    def test_temporal_blocks_have_no_captions(self, make_block, inputs, count_ops):
        block = make_block(cross=False)
        fuse_(block)
        inputs = {name: inputs[name] for name in ("hidden_states", "timestep")}
        assert count_ops(block, **inputs) == WITHOUT_CAPTIONS

    @pytest.mark.parametrize("preset", PRESETS)
    def test_of_a_whole_denoiser(self, denoiser, outputs, count_ops, preset):
        for kind, blocks in (("image", 2 * [WITH_CAPTIONS]), ("video", None)):
            model = denoiser(kind, preset)
            fuse_(model)
            counts = count_ops(lambda m=model, k=kind: outputs(m, k))
            calls = counts["gelu_quantize"] // 2  # two blocks in each
            product = "int4_linear" if preset == "w4a8" else "int8_linear"
            each = blocks or [WITH_CAPTIONS, WITHOUT_CAPTIONS]
            for op in ("norm_quantize", "quantize_rows", "gelu_quantize"):
                assert counts[op] == calls * sum(block[op] for block in each)
            assert counts[product] == calls * sum(block["int8_linear"] for block in each)


class TestSomethingOnALayer:
    """That layer is called as a module with its float input; the others stay fused."""

    @pytest.fixture(params=["attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ff.net.0.proj"])
    def name(self, request):
        return request.param

    def compare(self, make_block, inputs, name, change, tolerance=1e-5):
        """The effect of ``change(block)`` on a drop-in and a fused block."""
        expected, fused = make_block(), make_block()
        before = run(expected, inputs)
        change(expected)
        fuse_(fused)
        change(fused)
        y = run(fused, inputs)
        assert distance(y, run(expected, inputs)) <= tolerance
        assert distance(y, before) > 1e-2
        return fused

    def test_wrapper(self, make_block, inputs, count_ops, name):
        """As PEFT wraps a layer for a LoRA."""

        class Wrapper(nn.Module):
            def __init__(self, base_layer):
                super().__init__()
                self.base_layer = base_layer
                torch.manual_seed(3)
                self.down = nn.Linear(base_layer.in_features, 4, bias=False)
                self.up = nn.Linear(4, base_layer.out_features, bias=False)

            def forward(self, x):
                return self.base_layer(x) + self.up(self.down(x))

        def wrap(block):
            block.set_submodule(name, Wrapper(block.get_submodule(name)))

        fused = self.compare(make_block, inputs, name, wrap)
        counts = count_ops(fused, **inputs)
        assert counts["quantize_rows"] == 5 - (name == "attn1.to_out.0")
        fused.set_submodule(name, fused.get_submodule(name).base_layer)
        assert count_ops(fused, **inputs) == WITH_CAPTIONS

    def test_hook(self, make_block, inputs, count_ops, name):
        handles = []

        def hook(block):
            layer = block.get_submodule(name)
            handles.append(layer.register_forward_hook(lambda module, args, y: 2 * y))

        fused = self.compare(make_block, inputs, name, hook)
        handles[-1].remove()
        assert count_ops(fused, **inputs) == WITH_CAPTIONS

    def test_hook_before_sees_the_original_input(self, make_block, inputs, name):
        """The same tensor in the same shape, to the last bit, up to the first fused norm."""
        seen = []

        def watch(block):
            layer = block.get_submodule(name)
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

        expected, fused = make_block(), make_block()
        watch(expected)
        fuse_(fused)
        watch(fused)
        run(expected, inputs)
        run(fused, inputs)
        assert seen[0].shape == seen[1].shape
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)
        if name in ("attn1.to_q", "attn2.to_v"):
            assert torch.equal(seen[0], seen[1])

    def test_forward_of_its_own(self, make_block, inputs, name):
        """As offloading installs it."""

        def patch(block):
            layer = block.get_submodule(name)
            original = layer.forward
            layer.forward = lambda x: 2 * original(x)

        self.compare(make_block, inputs, name, patch)

    def test_float_layer(self, make_block, inputs, count_ops, name):
        block = make_block(plans={name: None})
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        counts = count_ops(block, **inputs)
        fewer = name in ("attn1.to_out.0", "ff.net.0.proj")  # a product of their own
        assert counts["int8_linear"] == 7 - fewer

    @pytest.mark.parametrize(
        "other, norms, products",
        [
            (LayerPlan(activation="int6", smooth=0.5, hadamard=16), 3, 8),
            (LayerPlan(weight="int4", smooth=0.5, hadamard=16), 2, 7),
            (LayerPlan(smooth=0.5), 3, 8),
            (LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16), 3, 8),
            (LayerPlan(granularity="tensor", smooth=0.5, hadamard=16), 3, 8),
        ],
    )
    def test_readers_that_differ(self, make_block, inputs, count_ops, other, norms, products):
        """Another format of weights needs a product of its own; other codes, too."""
        block = make_block(plans={"attn1.to_k": other})
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        counts = count_ops(block, **inputs)
        assert counts["norm_quantize"] == norms
        assert counts["int8_linear"] == products
        assert counts.get("int4_linear", 0) == (other.weight == "int4")


class TestStaticActivations:
    """They are quantized by the same ops, and as often."""

    NAIVE = LayerPlan(granularity="tensor")
    BALANCED = LayerPlan(granularity="tensor", smooth=0.5, hadamard=16)

    @pytest.mark.parametrize(
        "plan", [NAIVE, BALANCED, BALANCED.model_copy(update={"weight": "int4"})]
    )
    def test_everywhere(self, make_block, inputs, count_ops, plan):
        block = make_block(plan)
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        counts = count_ops(block, **inputs)
        assert counts == {
            name.replace("int8_linear", f"{plan.weight}_linear"): count
            for name, count in WITH_CAPTIONS.items()
        }

    @pytest.mark.parametrize("name", ["attn1.to_out.0", "attn2.to_q", "ff.net.0.proj", "ff.net.2"])
    def test_of_one_layer(self, make_block, inputs, count_ops, name):
        block = make_block(plans={name: self.NAIVE})
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        assert count_ops(block, **inputs) == WITH_CAPTIONS

    def test_readers_with_equal_plans_and_unequal_scales(self, make_block):
        """No calibration makes these; a checkpoint from elsewhere might."""
        block = make_block(self.BALANCED)
        block.attn2.to_v.input_scale.data *= 2
        assert fuse_(block) == 0

    def test_unequal_scales_of_different_formats(self, make_block, inputs, count_ops):
        """As conversion makes them: the same range in other steps, so codes of their own."""
        block = make_block(
            self.BALANCED, {"attn1.to_k": self.BALANCED.model_copy(update={"activation": "int6"})}
        )
        block.attn1.to_k.input_scale.data *= 127 / 31
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        assert count_ops(block, **inputs)["norm_quantize"] == 3


class TestDeclined:
    """The block as a whole takes its original forward: bit by bit, with none of the fused ops."""

    def check(self, block, inputs, count_ops, change=lambda block: None, original=DROP_IN):
        expected = copy.deepcopy(block)
        change(expected)
        assert fuse_(block) == 1
        change(block)
        assert torch.equal(run(block, inputs), run(expected, inputs))
        assert count_ops(block, **inputs) == original

    @pytest.mark.parametrize(
        "name", ["attn1", "attn2", "norm1", "ff", "ff.net.0", "attn1.to_out.1"]
    )
    def test_hook_on_a_submodule(self, make_block, inputs, count_ops, name):
        def hook(block):
            block.get_submodule(name).register_forward_hook(lambda module, args, y: 2 * y)

        self.check(make_block(), inputs, count_ops, hook)

    def test_attention_processor(self, make_block, inputs, count_ops):
        self.check(
            make_block(),
            inputs,
            count_ops,
            lambda block: block.attn1.set_processor(AttnProcessor()),
        )

    def test_chunked_feed_forward(self, make_block, inputs, count_ops):
        chunked = {"quantize_rows": 12, "int8_linear": 12}
        self.check(
            make_block(),
            inputs,
            count_ops,
            lambda block: block.set_chunk_feed_forward(3, dim=1),
            chunked,
        )

    def test_cross_attention_kwargs(self, make_block, inputs, count_ops):
        inputs["cross_attention_kwargs"] = {"ip_adapter_masks": None}
        self.check(make_block(), inputs, count_ops)
        inputs["cross_attention_kwargs"] = {}
        block = make_block()
        fuse_(block)
        assert count_ops(block, **inputs) == WITH_CAPTIONS

    def test_unusual_mask(self, make_block, inputs, count_ops):
        inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"][:, 0]
        self.check(make_block(), inputs, count_ops)

    def test_captions_missing(self, make_block, inputs, count_ops):
        """diffusers then attends to the tokens themselves."""
        del inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
        self.check(make_block(), inputs, count_ops)

    def test_active_dropout(self, make_block, inputs, count_ops):
        block = make_block(dropout=0.5)
        fuse_(block)
        assert count_ops(block, **inputs) == WITH_CAPTIONS
        assert count_ops(block.train(), **inputs) == DROP_IN

    def test_gradient(self, make_block, inputs):
        """Integer products have none; the original forward passes it along the residual."""
        block = make_block()
        fuse_(block)
        inputs["hidden_states"].requires_grad_()
        y = block(**inputs)
        with pytest.warns(UserWarning, match="autograd kernel was not registered"):
            y.sum().backward()
        assert inputs["hidden_states"].grad.abs().min() > 0

    def test_forward_of_its_own(self, make_block):
        """It wraps the original one already."""
        block = make_block()
        block.forward = lambda **arguments: None
        assert fuse_(block) == 0

    @pytest.mark.parametrize(
        "options",
        [
            {"norm_type": "layer_norm"},
            {"norm_type": "ada_norm_zero", "num_embeds_ada_norm": 10},
            {"activation_fn": "geglu"},
            {"attention_type": "gated"},
            {"positional_embeddings": "sinusoidal", "num_positional_embeddings": 8},
            {"only_cross_attention": True},
            {"final_dropout": True},
        ],
        ids=str,
    )
    def test_configurations_it_does_not_know(self, make_block, options):
        assert fuse_(make_block(**options)) == 0

    def test_blocks_without_a_layer_that_gains(self, make_block):
        assert fuse_(make_block(None)) == 0

    def test_readers_with_equal_plans_and_unequal_smoothing(self, make_block):
        """No plan makes these; a checkpoint from elsewhere might."""
        block = make_block()
        block.attn2.to_v.smooth.data *= 2
        assert fuse_(block) == 0


class TestAttention:
    @pytest.mark.parametrize("captions", [1, 7, 12])
    def test_any_number_of_captions(self, make_block, inputs, captions):
        inputs["encoder_hidden_states"] = torch.randn(2, captions, 32)
        inputs["encoder_attention_mask"] = torch.zeros(2, 1, captions)
        block = make_block()
        expected = run(block, inputs)
        fuse_(block)
        assert distance(run(block, inputs), expected) <= 1e-5

    def test_padding_is_not_read(self, make_block, inputs):
        block = make_block()
        fuse_(block)
        before = run(block, inputs)
        inputs["encoder_hidden_states"][0, 3:] = 100.0
        assert torch.equal(run(block, inputs), before)
        inputs["encoder_hidden_states"][1, 3:] = 100.0
        assert torch.equal(run(block, inputs)[0], before[0])
        assert not torch.equal(run(block, inputs)[1], before[1])

    @pytest.mark.parametrize("queries", [1, 6])
    def test_mask_of_self_attention(self, make_block, inputs, count_ops, queries):
        inputs["attention_mask"] = -10000.0 * (torch.rand(2, queries, 6) < 0.3)
        block = make_block()
        expected = run(block, inputs)
        fuse_(block)
        assert distance(run(block, inputs), expected) <= 1e-5
        assert count_ops(block, **inputs) == WITH_CAPTIONS

    def test_norms_with_weights_and_layers_without_bias(self, make_block, inputs):
        block = make_block(norm_elementwise_affine=True, attention_bias=False, activation_fn="gelu")
        block.norm1.weight.data = torch.rand(32)
        block.norm2.bias.data = torch.randn(32)
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5


class TestStaysAModule:
    def test_class_name_and_hooks(self, make_block, inputs):
        """By the name, diffusers knows what to compile, to keep together and to offload."""
        block = make_block()
        block.register_forward_hook(lambda module, args, y: 2 * y)
        expected = run(block, inputs)
        before = block.state_dict()
        fuse_(block)
        assert isinstance(block, attention.BasicTransformerBlock)
        assert type(block).__name__ == attention.BasicTransformerBlock.__name__
        assert repr(block).startswith("FusedBasicTransformerBlock(")
        assert distance(run(block, inputs), expected) <= 1e-5
        after = block.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_fusing_twice_and_unfusing(self, make_block, inputs):
        block = make_block()
        expected = run(block, inputs)
        assert (fuse_(block), fuse_(block)) == (1, 0)
        run(block, inputs)
        assert (unfuse_(block), unfuse_(block)) == (1, 0)
        assert type(block) is attention.BasicTransformerBlock
        assert torch.equal(run(block, inputs), expected)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
    def test_copies_are_fused_and_independent(self, make_block, inputs, count_ops, duplicate):
        block = make_block()
        fuse_(block)
        expected = run(block, inputs)
        twin = duplicate(block)
        assert torch.equal(run(twin, inputs), expected)
        assert count_ops(twin, **inputs) == WITH_CAPTIONS
        twin.attn1.to_q.weight.data.zero_()
        assert torch.equal(run(block, inputs), expected)
        assert not torch.equal(run(twin, inputs), expected)

    def test_loading_other_weights(self, make_block, inputs):
        model = nn.ModuleList([make_block(), make_block()])
        block, other = model
        other.attn1.to_k.weight.data.neg_()
        assert fuse_(model) == 2
        run(block, inputs)
        for assign in (False, True):
            block.load_state_dict(other.state_dict(), assign=assign)
            assert torch.equal(run(block, inputs), run(other, inputs))

    @pytest.mark.parametrize("cross", [True, False])
    @pytest.mark.parametrize("weight", ["int8", "int6", "int4"])
    def test_compiles_into_one_graph(self, make_block, inputs, weight, cross):
        block = make_block(LayerPlan(weight=weight, smooth=0.5, hadamard=16), cross=cross)
        fuse_(block)
        if not cross:
            inputs = {name: inputs[name] for name in ("hidden_states", "timestep")}
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, inputs), expected)

    def test_compiles_into_one_graph_with_layers_that_are_not_fused(self, make_block, inputs):
        static = LayerPlan(granularity="tensor", smooth=0.5, hadamard=16)
        others = {"attn1.to_k": None, "attn2.to_out.0": static, "ff.net.0.proj": static}
        block = make_block(plans=others)
        block.ff.net[2].register_forward_hook(lambda module, args, y: 2 * y)
        fuse_(block)
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, inputs), expected)


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture(params=["token", "tensor"])
    def plan(self, request):
        return LayerPlan(granularity=request.param, smooth=0.5, hadamard=16)

    @pytest.fixture
    def on_cuda(self, make_block, inputs, plan):
        """A fused block and its inputs."""
        block = make_block(plan).cuda()
        fuse_(block)
        return block, {name: value.cuda() for name, value in inputs.items()}

    def test_is_the_block_on_the_cpu(self, make_block, inputs, on_cuda, plan):
        """With a flip or two: one is 1/127 of a row in one of 32 channels of one of 12 tokens."""
        block, moved = on_cuda
        assert distance(run(block, moved).cpu(), run(make_block(plan), inputs)) <= 5e-3

    def test_does_not_wait_for_the_device(self, on_cuda):
        block, inputs = on_cuda
        run(block, inputs)  # compiles kernels and lays the weights side by side
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(block, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

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


def test_where_fusing_is_the_default(monkeypatch):
    """Where ops run kernels of their own."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert is_faster("cuda:1")
    assert not is_faster(torch.device("cpu"))
