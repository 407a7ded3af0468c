"""Fused blocks of every family compute what their layers would, in a model as it calls them."""

import copy
import inspect
import math
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import tiny_transformers
from tiny_transformers import COGVIDEOX, Case
from viditq.bench.random_models import quantize_random_
from viditq.blocks import fuse_, unfuse_
from viditq.models import adapter_for
from viditq.nn import FP32_TENSORS, QuantLinear
from viditq.plan import LayerPlan

PLANS = {
    "w8a8": LayerPlan(smooth=0.5, hadamard=16),
    "w8a8-unbalanced": LayerPlan(),
    "w8a8-centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16),
    "w4a8": LayerPlan(weight="int4", smooth=0.5, hadamard=16),
    "tcq": LayerPlan(weight="tcq4", smooth=0.5, hadamard=16, rounding="gptq"),
}


def turns(tokens: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (S, D), each number twice."""
    angles = (6 * torch.rand(tokens, width // 2)).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


CASES = {
    **tiny_transformers.CASES,
    "cogvideox, 5b": Case(
        lambda: diffusers.CogVideoXTransformer3DModel(
            **COGVIDEOX, use_rotary_positional_embeddings=True
        ),
        set(),
        (2, 3, 4, 6, 10),
        lambda: {"image_rotary_emb": turns(3 * 3 * 5)},
    ),
}


@dataclass(frozen=True)
class Family:
    """One of the tiny transformers.

    Attributes:
        blocks: how many of each class have a twin.
        ops: for each class of blocks, how often viditq's ops run in the first such block when it is
            fused: ``norm_quantize``, ``quantize_rows``, ``gelu_quantize``, products and
            ``norm_rotate``.
        passed_by: names in such a block of modules that the fused forward does not call.
    """

    blocks: dict[str, int]
    ops: dict[str, tuple[int, int, int, int, int]]
    passed_by: dict[str, tuple[str, ...]]


OPS = ("norm_quantize", "quantize_rows", "gelu_quantize", "int8_linear", "norm_rotate")
HEAD_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
SELF = ("norm1", "norm2", "attn1", "ff", "ff.net.0", "ff.net.1")
JOINT = tuple(f"{name}{stream}" for name in ("norm1", "norm2", "ff") for stream in ("", "_context"))
JOINT = (*JOINT, "norm1_context.norm", "attn", "attn.to_out.1", "ff.net.0", "ff_context.net.1")
QWEN = tuple(f"{stream}_{name}" for name in ("norm1", "norm2", "mlp") for stream in ("img", "txt"))
IN_BLOCK = (*SELF, "attn2")

FAMILIES = {
    "latte-class": Family(
        {"LatteClassBlock": 6},
        {"LatteClassBlock": (2, 1, 1, 4, 0)},
        {"LatteClassBlock": SELF},
    ),
    "stdit": Family(
        {"STDiTBlock": 2},
        {"STDiTBlock": (2, 6, 1, 9, 0)},
        {"STDiTBlock": (*IN_BLOCK, "temporal_attn")},
    ),
    "stdit3": Family(
        {"STDiT3Block": 22},
        {"STDiT3Block": (2, 4, 1, 7, 0)},
        {"STDiT3Block": IN_BLOCK},
    ),
    "cogvideox": Family(
        {"CogVideoXBlock": 2},
        {"CogVideoXBlock": (4, 1, 1, 6, 2)},
        {"CogVideoXBlock": (*SELF, "norm1.norm", "attn1.to_out.1", "ff.net.3")},
    ),
    "cogvideox, 5b": Family(
        {"CogVideoXBlock": 2}, {"CogVideoXBlock": (4, 1, 1, 6, 2)}, {"CogVideoXBlock": ()}
    ),
    "sd3": Family(
        {"JointTransformerBlock": 3},
        {"JointTransformerBlock": (4, 2, 2, 8, 0)},
        {"JointTransformerBlock": JOINT},
    ),
    "sd3, 3.5-medium": Family(
        {"JointTransformerBlock": 3},
        {"JointTransformerBlock": (5, 3, 2, 10, 4)},
        {"JointTransformerBlock": ("attn2", "norm1", "norm1.norm", "attn2.to_out.1")},
    ),
    "hunyuan-video": Family(
        {"HunyuanVideoTransformerBlock": 2, "HunyuanVideoSingleTransformerBlock": 2},
        {
            "HunyuanVideoTransformerBlock": (4, 2, 2, 8, 2),
            "HunyuanVideoSingleTransformerBlock": (2, 0, 1, 3, 2),
        },
        {
            "HunyuanVideoTransformerBlock": JOINT,
            "HunyuanVideoSingleTransformerBlock": ("norm", "norm.norm", "attn", "act_mlp"),
        },
    ),
    "qwen-image": Family(
        {"QwenImageTransformerBlock": 2},
        {"QwenImageTransformerBlock": (4, 2, 2, 8, 2)},
        {"QwenImageTransformerBlock": (*QWEN, "attn", "attn.to_out.1", "txt_mlp.net.0")},
    ),
    "ltx": Family(
        {"LTXVideoTransformerBlock": 2},
        {"LTXVideoTransformerBlock": (2, 4, 1, 7, 4)},
        {"LTXVideoTransformerBlock": (*IN_BLOCK, "attn2.to_out.1")},
    ),
    "sana": Family(
        {"SanaTransformerBlock": 2},
        {"SanaTransformerBlock": (1, 4, 0, 5, 0)},
        {"SanaTransformerBlock": ("norm1", "norm2", "attn1", "attn2", "attn1.to_out.1")},
    ),
    "flux2": Family(
        {"Flux2TransformerBlock": 2, "Flux2SingleTransformerBlock": 2},
        {"Flux2TransformerBlock": (4, 4, 0, 8, 2), "Flux2SingleTransformerBlock": (1, 1, 0, 2, 2)},
        {
            "Flux2TransformerBlock": ("norm1", "norm2", "norm1_context", "attn", "ff_context"),
            "Flux2SingleTransformerBlock": ("norm", "attn"),
        },
    ),
}
CLASSES = [(name, kind) for name, family in FAMILIES.items() for kind in family.ops]

# What a code that flips moves a block's output by, relative to its norm: it is 1/127 of a row in
# one of 32 channels. Sums in another order flip one now and then, and which ones differs from one
# processor to the next: when the input moves by an fp32 rounding, drop-in layers move by up to
# 0.0005 in models of a few blocks (0.001 in one of 22).
FLIP = 1e-3


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def make(name: str, plan: LayerPlan = PLANS["w8a8"]) -> nn.Module:
    """Norms do something, and gates let all of a block through."""
    model = CASES[name].model()
    for module, parameter in ((m, p) for m in model.modules() for p in m.named_parameters("", 0)):
        own, value = parameter
        if "Norm" in type(module).__name__ and value.ndim == 1:
            value.data = torch.rand(value.shape) + 0.5 if own == "weight" else value.data
        elif own == "bias":
            value.data = torch.randn(value.shape) / 4
    amax = dict.fromkeys(adapter_for(model).layers(model), torch.tensor(4.0))
    return quantize_random_(model, plan, amax).requires_grad_(False)


def denoise(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0].float()


def rounded_model(model: nn.Module) -> nn.Module:
    """``model`` as a checkpoint is loaded in bf16: scales stay fp32."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in FP32_TENSORS:
            parameter.data = rounded(parameter.data)
    return model


def rounded(value: Any) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if floats else value


def widened(value: Any) -> Any:
    narrow = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if narrow else value


def every(change: Callable[[Any], Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: change(value) for name, value in arguments.items()}


@pytest.mark.parametrize("name", FAMILIES)
class TestModel:
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_fused_is_drop_in_but_for_a_few_codes(self, name, plan):
        """Flips in several blocks add up like errors that do not depend on each other."""
        model, inputs = make(name, plan), CASES[name].inputs()
        expected = denoise(model, inputs)
        blocks = sum(FAMILIES[name].blocks.values())
        assert fuse_(model) == blocks
        assert distance(denoise(model, inputs), expected) <= FLIP * math.sqrt(blocks)
        assert unfuse_(model) == blocks
        assert torch.equal(denoise(model, inputs), expected)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_in_bf16_it_is_no_farther_from_fp32_than_drop_in(self, name, plan):
        """Over four calls; in one of them a flip may decide."""
        model = rounded_model(make(name, plan))
        inputs = [every(rounded, CASES[name].inputs(seed)) for seed in range(4)]
        exact_model = copy.deepcopy(model).float()
        exact = torch.cat([denoise(exact_model, every(widened, call)) for call in inputs])
        drop_in = distance(torch.cat([denoise(model, call) for call in inputs]), exact)
        fuse_(model)
        fused = distance(torch.cat([denoise(model, call) for call in inputs]), exact)
        assert fused <= 1.1 * drop_in


@dataclass
class Call:
    """A block of a model and the arguments that the model calls it with."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module | None = None) -> torch.Tensor:
        """All that comes out, (B, …, C), end to end."""
        with torch.no_grad():
            y = (self.block if block is None else block)(*self.args, **self.kwargs)
        return end_to_end(y)


def end_to_end(y: Any) -> torch.Tensor:
    parts = y if isinstance(y, tuple) else (y,)
    return torch.cat([part.flatten(1, -2) for part in parts if part is not None], 1)


def calls(name: str, kind: str, plan: LayerPlan = PLANS["w8a8"]) -> list[Call]:
    """One of every block of the class ``kind``."""
    model, found = make(name, plan), []

    def keep(module, args, kwargs):
        found.append(Call(module, args, kwargs))

    blocks = [module for module in model.modules() if type(module).__name__ == kind]
    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    denoise(model, CASES[name].inputs())
    for handle in handles:
        handle.remove()
    assert len(found) == FAMILIES[name].blocks[kind]
    return found


def counts(ops: tuple[int, ...]) -> Counter:
    return Counter(dict(zip(OPS, ops, strict=True)))


@pytest.fixture(params=CLASSES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    return request.param


class TestBlock:
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_computes_what_its_layers_would(self, case, plan):
        """But for a code that flips in one token, of which others see their share in attention:
        with as few tokens as here that can be a tenth, and most see far less."""
        for call in calls(*case, plan)[:4]:
            expected = call.run()
            assert fuse_(call.block) == 1
            y = call.run()
            assert y.shape == expected.shape
            assert distance(y, expected) <= FLIP
            off = (y - expected).abs().amax(-1) / expected.abs().amax()
            assert off.median() <= 2e-5

    def test_ops(self, case, count_ops):
        """Counted, so that a block that silently falls back fails."""
        name, kind = case
        call = calls(name, kind)[0]
        layers = sum(isinstance(module, QuantLinear) for module in call.block.modules())
        before = Counter(count_ops(call.run))
        assert before == counts((0, layers, 0, layers, 0))
        fuse_(call.block)
        assert Counter(count_ops(call.run)) == counts(FAMILIES[name].ops[kind])

    @pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
    def test_layers_that_are_called_as_modules_get_what_they_would(self, case, half):
        """With a hook on each of them and on each norm of queries or keys nothing is left of fusing
        but rotation, and each layer reads what it would."""
        for call in calls(*case)[:4]:
            if half:
                rounded_model(call.block)
                call.args = tuple(map(rounded, call.args))
                call.kwargs = every(rounded, call.kwargs)
            fused = copy.deepcopy(call.block)
            assert fuse_(fused) == 1
            before, seen = watched(call.block), watched(fused)
            expected, y = call.run(), call.run(fused)
            assert seen.keys() == before.keys()
            assert torch.equal(y, expected)
            assert all(torch.equal(seen[layer], x) for layer, x in before.items())

    def test_something_on_one_layer(self, case, count_ops):
        """That layer is called as a module, as PEFT's for a LoRA is; the others stay fused."""
        call = calls(*case)[0]
        names = [n for n, m in call.block.named_modules() if isinstance(m, QuantLinear)]
        for layer in names:
            expected, fused = copy.deepcopy(call.block), copy.deepcopy(call.block)
            fuse_(fused)
            before = call.run(fused)
            for block in (expected, fused):
                block.set_submodule(layer, Wrapper(block.get_submodule(layer)))
            y = call.run(fused)
            assert distance(y, call.run(expected)) <= FLIP, layer
            assert distance(y, before) > 3 * FLIP, layer
            ops = count_ops(lambda block=fused: call.run(block))
            reads_alone = layer == "attn.to_qkv_mlp_proj"  # what the block's one fused op makes
            assert "norm_quantize" in ops or "gelu_quantize" in ops or reads_alone, layer
            fused.set_submodule(layer, fused.get_submodule(layer).base_layer)
            assert torch.equal(call.run(fused), before)

    def test_a_hook_on_a_norm_of_queries_or_keys(self, case):
        """It is called as a module, in every such place."""
        call = calls(*case)[0]
        names = [n for n, _ in call.block.named_modules() if n.rpartition(".")[2] in HEAD_NORMS]
        for name in names:
            expected, fused = copy.deepcopy(call.block), copy.deepcopy(call.block)
            fuse_(fused)
            before = call.run(fused)
            for block in (expected, fused):
                norm = block.get_submodule(name)
                norm.register_forward_hook(lambda module, args, y: y.flip(-1) * 4)
            y = call.run(fused)
            assert distance(y, call.run(expected)) <= FLIP, name
            assert distance(y, before) > 3 * FLIP, name

    def test_a_float_layer(self, case):
        call = calls(*case)[0]
        for layer in [n for n, m in call.block.named_modules() if isinstance(m, QuantLinear)]:
            block = copy.deepcopy(call.block)
            old = block.get_submodule(layer)
            torch.manual_seed(3)
            new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
            block.set_submodule(layer, new)
            expected = call.run(block)
            assert fuse_(block) == 1
            assert distance(call.run(block), expected) <= FLIP, layer

    def test_static_activations(self, case):
        call = calls(*case, LayerPlan(granularity="tensor"))[0]
        expected = call.run()
        assert fuse_(call.block) == 1
        assert distance(call.run(), expected) <= FLIP


def watched(block: nn.Module) -> dict[str, torch.Tensor]:
    """What every quantized layer of ``block`` reads, as it comes to be called as a module."""
    seen = {}

    def watch(name):
        return lambda module, args: seen.__setitem__(name, args[0])

    for name, module in block.named_modules():
        if isinstance(module, QuantLinear):
            module.register_forward_pre_hook(watch(name))
        if name.rpartition(".")[2] in HEAD_NORMS:
            module.register_forward_hook(lambda module, args, y: y)
    return seen


class Wrapper(nn.Module):
    """As PEFT wraps a layer for a LoRA."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        torch.manual_seed(3)
        self.lora = nn.Linear(base_layer.in_features, base_layer.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 4 * self.lora(x)


class TestDeclined:
    """The block as a whole takes its original forward: bit by bit."""

    def test_hook_on_a_submodule_that_is_passed_by(self, case, count_ops):
        name, kind = case
        call = calls(name, kind)[0]
        drop_in = count_ops(call.run)
        for passed_by in FAMILIES[name].passed_by[kind]:
            expected, fused = copy.deepcopy(call.block), copy.deepcopy(call.block)
            fuse_(fused)
            for block in (expected, fused):
                block.get_submodule(passed_by).register_forward_hook(twice)
            assert torch.equal(call.run(fused), call.run(expected)), passed_by
            assert count_ops(lambda block=fused: call.run(block)) == drop_in, passed_by

    def test_gradient(self, case):
        """Integer products have none; the original forward passes it along the residual."""
        call = calls(*case)[0]
        fuse_(call.block)
        tensors = [*call.args, *call.kwargs.values()]
        x = next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
        x.requires_grad_()
        y = end_to_end(call.block(*call.args, **call.kwargs))
        with pytest.warns(UserWarning, match="autograd kernel was not registered"):
            y.sum().backward()
        assert x.grad.abs().min() > 0

    def test_what_is_not_fused_at_all(self, case):
        block = calls(*case)[0].block
        block.forward = lambda **arguments: None  # wraps the original one already
        assert fuse_(block) == 0

    def test_active_dropout(self, case):
        call = calls(*case)[0]
        fuse_(call.block)
        dropouts = [m for m in call.block.modules() if isinstance(m, nn.Dropout)]
        for dropout in dropouts:
            dropout.p = 1.0
        asleep = call.run()
        call.block.train()
        assert (distance(call.run(), asleep) > 1e-3) == bool(dropouts)

    def test_attention_processor(self, case, count_ops):
        call = calls(*case)[0]
        drop_in = count_ops(call.run)
        processors = [n for n, m in call.block.named_modules() if hasattr(m, "processor")]
        for name in processors:
            expected, fused = copy.deepcopy(call.block), copy.deepcopy(call.block)
            fuse_(fused)
            for block in (expected, fused):
                attn = block.get_submodule(name)
                own = type(attn.processor)
                attn.processor = type("Another", (own,), {})()
            assert torch.equal(call.run(fused), call.run(expected)), name
            assert count_ops(lambda block=fused: call.run(block)) == drop_in, name

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_attention_kwargs(self, case, count_ops):
        call = calls(*case)[0]
        drop_in = count_ops(call.run)
        parameters = inspect.signature(call.block.forward).parameters
        for name in [name for name in parameters if name.endswith("attention_kwargs")]:
            call.args, call.kwargs = bound(call, parameters)
            call.kwargs[name] = {"nobody_reads_this": None}
            expected = call.run()
            fuse_(call.block)
            assert torch.equal(call.run(), expected)
            assert count_ops(call.run) == drop_in


class TestArguments:
    """Those that models give their blocks now and then."""

    def call(self, name: str, kind: str, **changes: Any) -> Call:
        """The first call of such a block, with all arguments by name."""
        found = calls(name, kind)[0]
        found.args, found.kwargs = bound(found, inspect.signature(found.block.forward).parameters)
        found.kwargs |= changes
        return found

    def check(self, name, call, count_ops):
        """It is fused, and right."""
        expected = call.run()
        assert fuse_(call.block) == 1
        kind = type(call.block).__name__
        assert distance(call.run(), expected) <= 1e-5
        assert Counter(count_ops(call.run)) == counts(FAMILIES[name].ops[kind])

    def check_declined(self, call, count_ops):
        """It is left to the original forward."""
        expected, drop_in = call.run(), count_ops(call.run)
        assert fuse_(call.block) == 1
        assert torch.equal(call.run(), expected)
        assert count_ops(call.run) == drop_in

    @pytest.mark.parametrize("kind", FAMILIES["hunyuan-video"].blocks)
    def test_hunyuan_video_without_mask_and_rotation(self, count_ops, kind):
        call = self.call("hunyuan-video", kind, attention_mask=None)
        rotation = "freqs_cis" if "freqs_cis" in call.kwargs else "image_rotary_emb"
        assert call.kwargs[rotation] is not None
        call.kwargs[rotation] = None
        self.check("hunyuan-video", call, count_ops)

    def test_qwen_image_without_mask_and_rotation(self, count_ops):
        call = self.call("qwen-image", "QwenImageTransformerBlock")
        assert call.kwargs["encoder_hidden_states_mask"] is not None
        call.kwargs |= {"encoder_hidden_states_mask": None, "image_rotary_emb": None}
        self.check("qwen-image", call, count_ops)

    def test_qwen_image_with_a_second_timestep(self):
        block = self.call("qwen-image", "QwenImageTransformerBlock").block
        block.zero_cond_t = True
        assert fuse_(block) == 0

    def test_ltx_with_a_modulation_for_each_token(self, count_ops):
        call = self.call("ltx", "LTXVideoTransformerBlock")
        tokens = call.kwargs["hidden_states"].shape[1]
        call.kwargs["temb"] = torch.randn(2, tokens, 6 * 32) / 2
        self.check("ltx", call, count_ops)

    @pytest.mark.parametrize("name", ["temb_mod_img", "temb_mod_txt"])
    def test_flux2_with_one_modulation_for_all_samples(self, count_ops, name):
        call = self.call("flux2", "Flux2TransformerBlock")
        call.kwargs[name] = torch.randn(1, 1, 6 * 32) / 2
        self.check("flux2", call, count_ops)

    def test_flux2_with_a_modulation_for_each_token(self, count_ops):
        call = self.call("flux2", "Flux2TransformerBlock")
        call.kwargs["temb_mod_img"] = torch.randn(2, 16, 6 * 32) / 2
        self.check_declined(call, count_ops)

    def test_flux2_with_the_text_apart(self, count_ops):
        call = self.call("flux2", "Flux2SingleTransformerBlock")
        assert call.kwargs["encoder_hidden_states"] is None
        both = call.kwargs["hidden_states"]
        call.kwargs |= {
            "hidden_states": both[:, 5:],
            "encoder_hidden_states": both[:, :5],
            "split_hidden_states": True,
        }
        with torch.no_grad():
            text, image = call.block(**call.kwargs)
        assert (text.shape[1], image.shape[1]) == (5, 16)
        self.check("flux2", call, count_ops)

    def test_sd3_in_chunks(self, count_ops):
        call = self.call("sd3", "JointTransformerBlock")
        call.block.set_chunk_feed_forward(1, 0)
        expected = call.run()
        assert fuse_(call.block) == 1
        assert torch.equal(call.run(), expected)
        assert "norm_quantize" not in count_ops(call.run)

    def test_sana_in_fp16(self, count_ops):
        """The original clips in the middle."""
        call = self.call("sana", "SanaTransformerBlock")
        for name, parameter in call.block.named_parameters():
            if name.rpartition(".")[2] not in FP32_TENSORS and parameter.is_floating_point():
                parameter.data = parameter.data.half()
        call.kwargs = {
            name: value.half() if isinstance(value, torch.Tensor) else value
            for name, value in call.kwargs.items()
        }
        self.check_declined(call, count_ops)


def bound(call: Call, parameters) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All arguments by name."""
    return (), dict(zip(parameters, call.args, strict=False)) | call.kwargs


def twice(module, args, y):
    return tuple(2 * each for each in y) if isinstance(y, tuple) else 2 * y


class TestStaysAModule:
    def test_class_name_and_state(self, case):
        call = calls(*case)[0]
        original, before = type(call.block), call.block.state_dict()
        assert (fuse_(call.block), fuse_(call.block)) == (1, 0)
        assert isinstance(call.block, original)
        assert type(call.block).__name__ == original.__name__
        assert repr(call.block).startswith(f"Fused{original.__name__}(")
        call.run()
        after = call.block.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
    def test_copies_are_fused(self, case, count_ops, duplicate):
        name, kind = case
        call = calls(name, kind)[0]
        fuse_(call.block)
        expected, twin = call.run(), duplicate(call.block)
        assert torch.equal(call.run(twin), expected)
        assert Counter(count_ops(lambda: call.run(twin))) == counts(FAMILIES[name].ops[kind])

    @pytest.mark.parametrize("plan", [PLANS["w8a8"], PLANS["w4a8"]], ids=["w8a8", "w4a8"])
    def test_compiles_into_one_graph(self, case, plan):
        call = calls(*case, plan)[-1]
        fuse_(call.block)
        expected = call.run()
        torch._dynamo.reset()
        compiled = torch.compile(call.block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(call.run(compiled), expected)


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture
    def on_cuda(self, case):
        """A call of a block that is fused, there, and what it gives on the CPU, not fused."""
        call = calls(*case)[0]
        expected = call.run()
        fuse_(call.block.cuda())
        call.args, call.kwargs = tree_map_only(
            torch.Tensor, lambda tensor: tensor.cuda(), (call.args, call.kwargs)
        )
        return call, expected

    def test_is_the_block_on_the_cpu(self, on_cuda):
        call, expected = on_cuda
        assert distance(call.run().cpu(), expected) <= 5e-3

    @pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
    def test_compiled(self, on_cuda):
        call, _ = on_cuda
        expected = call.run()
        torch._dynamo.reset()
        compiled = torch.compile(call.block, fullgraph=True)
        assert distance(call.run(compiled), expected) <= 5e-3
