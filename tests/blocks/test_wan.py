"""A fused block of Wan computes what its layers would, or leaves it to them."""

import copy
import pickle

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.transformers import transformer_wan
from torch import nn

from viditq import checkpoint
from viditq.bench import random_models
from viditq.blocks import fuse_, unfuse_
from viditq.models.wan import WAN
from viditq.plan import LayerPlan, Plan

PLANS = {
    "w8a8": LayerPlan(smooth=0.5, hadamard=16),
    "w8a8-unbalanced": LayerPlan(),
    "w8a8-centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16),
    "w4a8": LayerPlan(weight="int4", smooth=0.5, hadamard=16),
}
KINDS = ["text-to-video", "image-to-video", "token-times", "no-cross-norm"]
B, S, T, C, D = 2, 6, 5, 32, 16

FUSED = {
    **{"norm_quantize": 3, "norm_rotate": 4},
    **{"quantize_rows": 3, "gelu_quantize": 1, "int8_linear": 7},
}
DROP_IN = {"quantize_rows": 10, "int8_linear": 10}


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def run(block, inputs):
    with torch.no_grad():
        return block(**inputs)


def turns(tokens):
    """Cosines and sines (1, S, 1, D) as Wan's ``rope`` makes them."""
    angles = (torch.rand(1, tokens, 1, D // 2) * 6).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


@pytest.fixture
def inputs():
    return {
        "hidden_states": torch.randn(B, S, C),
        "encoder_hidden_states": torch.randn(B, T, C),
        "temb": torch.randn(B, 6, C) / 2,
        "rotary_emb": turns(S),
    }


@pytest.fixture(params=KINDS)
def case(request, make_wan_block, inputs):
    """``make(plan, …)`` of a block of each kind, and what it is called with."""
    kind, options = request.param, {}
    if kind == "image-to-video":
        options["added_kv_proj_dim"] = C
        inputs["encoder_hidden_states"] = torch.randn(B, T + 512, C)
    if kind == "token-times":
        inputs["temb"] = torch.randn(B, S, 6, C) / 2
    if kind == "no-cross-norm":
        options["cross_attn_norm"] = False
    return lambda *args, **more: make_wan_block(*args, **options, **more), inputs


def in_bf16(block, inputs):
    """As diffusers loads it: norms and modulation stay fp32."""
    kept = {n: t.data for n, t in block.named_parameters() if "norm1" in n or "norm2" in n}
    kept["scale_shift_table"] = block.scale_shift_table.data
    block.to(torch.bfloat16)
    for name, value in kept.items():
        block.get_parameter(name).data = value
    floats = ("hidden_states", "encoder_hidden_states", "temb")
    return block, inputs | {name: inputs[name].bfloat16() for name in floats}


class TestModel:
    CONFIG = {  # noqa: RUF012
        "num_attention_heads": 2,
        "attention_head_dim": D,
        "num_layers": 2,
        "ffn_dim": 96,
        "text_dim": 16,
        "freq_dim": 16,
    }

    def model(self, dtype, plan):
        cpu = torch.device("cpu")
        model = random_models.build("WanTransformer3DModel", self.CONFIG, cpu, dtype)
        return random_models.quantize_random_(model, plan).requires_grad_(False)

    def run(self, model, dtype, *, per_token):
        torch.manual_seed(2)
        steps = torch.randint(0, 1000, (2, 3 * 2 * 3) if per_token else (2,))
        with torch.no_grad():
            return model(
                hidden_states=torch.randn(2, 16, 3, 4, 6).to(dtype),
                timestep=steps,
                encoder_hidden_states=torch.randn(2, T, 16).to(dtype),
                return_dict=False,
            )[0]

    @pytest.mark.parametrize("per_token", [False, True])
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_fused_is_drop_in_but_for_a_few_codes(self, plan, per_token):
        """As for PixArt: some code may flip, which is 1/127 of a row in one of 32 channels."""
        model = self.model(torch.float32, plan)
        expected = self.run(model, torch.float32, per_token=per_token)
        assert fuse_(model) == 2
        assert distance(self.run(model, torch.float32, per_token=per_token), expected) <= 1e-3
        assert unfuse_(model) == 2
        assert torch.equal(self.run(model, torch.float32, per_token=per_token), expected)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_in_bf16_it_is_no_farther_from_fp32_than_drop_in(self, plan):
        model = self.model(torch.bfloat16, plan)
        exact = self.run(copy.deepcopy(model).float(), torch.float32, per_token=False)
        drop_in = distance(self.run(model, torch.bfloat16, per_token=False), exact)
        assert fuse_(model) == 2
        assert distance(self.run(model, torch.bfloat16, per_token=False), exact) <= 1.1 * drop_in

    def test_saved_and_loaded(self, tmp_path):
        choice = PLANS["w4a8"]
        model = self.model(torch.float32, choice)
        plan = Plan(model="wan", recipe="w4a8", layers=dict.fromkeys(WAN.layers(model), choice))
        checkpoint.save(model, tmp_path, plan, diagnostics={})
        fuse_(model)
        expected = self.run(model, torch.float32, per_token=False)
        loaded = checkpoint.load(tmp_path, fuse=True)
        assert torch.equal(self.run(loaded, torch.float32, per_token=False), expected)


class TestBlock:
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_is_drop_in(self, case, plan):
        make, inputs = case
        block = make(plan)
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5

    def test_in_bf16(self, case):
        make, inputs = case
        exact = run(make(), inputs)
        block, rounded = in_bf16(make(), inputs)
        drop_in = distance(run(block, rounded), exact)
        fuse_(block)
        y = run(block, rounded)
        assert y.dtype == torch.bfloat16
        assert distance(y, exact) <= 1.1 * drop_in

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_layers_that_are_called_as_modules_get_what_they_would(self, case, dtype):
        """With a hook on each layer and norm nothing is left of fusing, and nothing rounds
        otherwise."""
        make, inputs = case
        block = make()
        if dtype == torch.bfloat16:
            block, inputs = in_bf16(block, inputs)
        expected = run(block, inputs)
        fuse_(block)
        for module in block.modules():
            if isinstance(module, nn.Linear | nn.RMSNorm):
                module.register_forward_hook(lambda module, args, y: y)
        assert torch.equal(run(block, inputs), expected)

    def test_without_rotation(self, make_wan_block, inputs):
        inputs["rotary_emb"] = None
        block = make_wan_block()
        expected = run(block, inputs)
        fuse_(block)
        assert distance(run(block, inputs), expected) <= 1e-5

    def test_the_rotation_matters(self, make_wan_block, inputs):
        block = make_wan_block()
        fuse_(block)
        turned = run(block, inputs)
        assert distance(run(block, inputs | {"rotary_emb": turns(S)}), turned) > 1e-3

    def test_ops(self, case, count_ops):
        """Counted, so that a block that silently falls back fails."""
        make, inputs = case
        block = make()
        images = block.attn2.add_k_proj is not None
        plain = isinstance(block.norm2, nn.Identity)
        before = {op: count + 2 * images for op, count in DROP_IN.items()}
        assert count_ops(block, **inputs) == before
        fuse_(block)
        assert count_ops(block, **inputs) == {
            "norm_quantize": 3 - plain,
            "norm_rotate": 4 + images,
            "quantize_rows": 3 + images + plain,
            "gelu_quantize": 1,
            "int8_linear": 7 + images,
        }


class TestSomethingOnALayer:
    """That layer is called as a module; the others stay fused."""

    @pytest.fixture(params=["attn1.to_q", "attn1.to_out.0", "attn2.to_q", "ffn.net.2"])
    def name(self, request):
        return request.param

    def test_a_float_layer(self, make_wan_block, inputs, count_ops, name):
        block = make_wan_block(plans={name: None})
        expected = run(block, inputs)
        assert fuse_(block) == 1
        assert distance(run(block, inputs), expected) <= 1e-5
        assert count_ops(block, **inputs)["norm_quantize"] == 3 - (name == "attn2.to_q")

    def test_hook(self, make_wan_block, inputs, count_ops, name):
        """One that the norms of queries and keys do not take back."""
        expected, fused = make_wan_block(), make_wan_block()
        fuse_(fused)
        before = run(fused, inputs)
        handles = [
            block.get_submodule(name).register_forward_hook(lambda module, args, y: y.flip(-1))
            for block in (expected, fused)
        ]
        assert distance(run(fused, inputs), run(expected, inputs)) <= 1e-5
        assert distance(run(fused, inputs), before) > 1e-3
        handles[1].remove()
        assert count_ops(fused, **inputs) == FUSED

    @pytest.mark.parametrize("name", ["attn1.norm_q", "attn1.norm_k", "attn2.norm_k"])
    def test_hook_on_a_norm_of_queries_or_keys(self, make_wan_block, inputs, count_ops, name):
        """It is called as a module, and what it gives is rotated."""
        expected, fused = make_wan_block(), make_wan_block()
        fuse_(fused)
        for block in (expected, fused):
            block.get_submodule(name).register_forward_hook(lambda module, args, y: 3 * y)
        assert distance(run(fused, inputs), run(expected, inputs)) <= 1e-5
        rotates = name.startswith("attn1")
        assert count_ops(fused, **inputs) == FUSED | {"norm_rotate": 3 + rotates}


class TestDeclined:
    """The block as a whole takes its original forward, bit by bit."""

    def check(self, block, inputs, count_ops, change=lambda block: None):
        expected = copy.deepcopy(block)
        change(expected)
        assert fuse_(block) == 1
        change(block)
        assert torch.equal(run(block, inputs), run(expected, inputs))
        assert count_ops(block, **inputs) == DROP_IN

    @pytest.mark.parametrize(
        "name", ["attn1", "attn2", "norm1", "norm2", "norm3", "ffn", "ffn.net.0", "attn1.to_out.1"]
    )
    def test_hook_on_a_submodule(self, make_wan_block, inputs, count_ops, name):
        def hook(block):
            block.get_submodule(name).register_forward_hook(lambda module, args, y: 2 * y)

        self.check(make_wan_block(), inputs, count_ops, hook)

    def test_attention_processor(self, make_wan_block, inputs, count_ops):
        class Other(transformer_wan.WanAttnProcessor):
            pass

        self.check(make_wan_block(), inputs, count_ops, lambda b: b.attn1.set_processor(Other()))

    def test_one_modulation_for_several_samples(self, make_wan_block, inputs, count_ops):
        inputs["temb"] = inputs["temb"][:1]
        self.check(make_wan_block(), inputs, count_ops)

    def test_one_modulation_per_token_for_several_samples(self, make_wan_block, inputs, count_ops):
        inputs["temb"] = torch.randn(1, S, 6, C)
        self.check(make_wan_block(), inputs, count_ops)

    def test_active_dropout(self, make_wan_block, inputs, count_ops):
        def drop(block):
            block.ffn.net[1].p = 0.5

        self.check(make_wan_block(), inputs, count_ops, drop)

    def test_gradient(self, make_wan_block, inputs):
        block = make_wan_block()
        fuse_(block)
        inputs["hidden_states"].requires_grad_()
        y = block(**inputs)
        with pytest.warns(UserWarning, match="autograd kernel was not registered"):
            y.sum().backward()
        assert inputs["hidden_states"].grad.abs().min() > 0

    def test_what_is_not_fused_at_all(self, make_wan_block):
        assert fuse_(make_wan_block(None)) == 0
        block = make_wan_block()
        block.forward = lambda **arguments: None
        assert fuse_(block) == 0
        block = make_wan_block()
        block.attn1.to_k.smooth.data *= 2
        assert fuse_(block) == 0


class TestAttentionBackend:
    """The one that diffusers was told to use."""

    def test_of_the_context(self, make_wan_block, inputs, count_ops):
        block = make_wan_block()
        expected = run(block, inputs)
        fuse_(block)
        with attention_backend("_native_math"):
            assert distance(run(block, inputs), expected) <= 1e-5
            assert count_ops(block, **inputs) == FUSED

    def test_is_asked(self, make_wan_block, inputs, monkeypatch):
        asked = []

        def dispatch(q, k, v, *, backend, parallel_config):
            asked.append((backend, parallel_config))
            return q

        monkeypatch.setattr("viditq.blocks.wan.dispatch_attention_fn", dispatch)
        block = make_wan_block()
        fuse_(block)
        block.attn1.set_attention_backend("sage")
        block.attn1.processor._parallel_config = "ring"
        block.attn2.processor._parallel_config = "ring"
        run(block, inputs)
        # As in diffusers: the tokens are shared out among devices, the prompt is on each of them.
        assert asked == [(AttentionBackendName.SAGE, "ring"), (None, None)]


class TestStaysAModule:
    def test_class_name_and_state(self, make_wan_block, inputs):
        block = make_wan_block()
        before = block.state_dict()
        fuse_(block)
        assert isinstance(block, transformer_wan.WanTransformerBlock)
        assert type(block).__name__ == transformer_wan.WanTransformerBlock.__name__
        assert repr(block).startswith("FusedWanTransformerBlock(")
        run(block, inputs)
        after = block.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_fusing_twice_and_unfusing(self, make_wan_block, make_block, inputs):
        """Beside blocks of another class."""
        model = nn.ModuleList([make_wan_block(), make_block()])
        expected = run(model[0], inputs)
        kinds = [type(block) for block in model]
        assert (fuse_(model), fuse_(model)) == (2, 0)
        run(model[0], inputs)
        assert (unfuse_(model), unfuse_(model)) == (2, 0)
        assert [type(block) for block in model] == kinds
        assert torch.equal(run(model[0], inputs), expected)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
    def test_copies_are_fused_and_independent(self, make_wan_block, inputs, count_ops, duplicate):
        block = make_wan_block()
        fuse_(block)
        expected = run(block, inputs)
        twin = duplicate(block)
        assert torch.equal(run(twin, inputs), expected)
        assert count_ops(twin, **inputs) == FUSED
        twin.attn1.to_q.weight.data.zero_()
        assert torch.equal(run(block, inputs), expected)
        assert not torch.equal(run(twin, inputs), expected)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_compiles_into_one_graph(self, case, plan):
        make, inputs = case
        block = make(plan)
        fuse_(block)
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, inputs), expected)

    def test_compiles_into_one_graph_with_layers_that_are_not_fused(self, make_wan_block, inputs):
        others = {"attn1.to_k": None, "attn2.to_out.0": LayerPlan(granularity="tensor")}
        block = make_wan_block(plans=others)
        block.ffn.net[2].register_forward_hook(lambda module, args, y: 2 * y)
        fuse_(block)
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(run(compiled, inputs), expected)


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture
    def on_cuda(self, case):
        """A block, fused on a GPU, and its inputs there; the same on the CPU, not fused."""
        make, inputs = case
        block = make().cuda()
        fuse_(block)
        moved = {
            name: tuple(t.cuda() for t in value) if isinstance(value, tuple) else value.cuda()
            for name, value in inputs.items()
        }
        return block, moved, run(make(), inputs)

    def test_is_the_block_on_the_cpu(self, on_cuda):
        block, inputs, expected = on_cuda
        assert distance(run(block, inputs).cpu(), expected) <= 5e-3

    def test_does_not_wait_for_the_device(self, on_cuda):
        block, inputs, _ = on_cuda
        run(block, inputs)  # compiles kernels and lays the weights side by side
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(block, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_compiled(self, on_cuda):
        block, inputs, _ = on_cuda
        expected = run(block, inputs)
        torch._dynamo.reset()
        compiled = torch.compile(block, fullgraph=True)
        assert distance(run(compiled, inputs), expected) <= 5e-3
