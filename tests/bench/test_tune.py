"""Tuning replaces the layers that lose, whole inputs at a time, and nothing else.

On the CPU the times are given; that layers are replaced, and what the model makes then, is real.
"""

import copy

import pytest
import torch
from torch import nn

import tiny
from checks import refuses
from viditq import capture_, checkpoint, fuse_, graphs, release_, tune_, unfuse_
from viditq.bench import tune
from viditq.bench.random_models import quantize_random_
from viditq.errors import CheckpointError, InputError
from viditq.nn import QuantLinear, RestoredLinear
from viditq.plan import LayerPlan, Plan

PLAN = LayerPlan(smooth=0.5, hadamard=16)
LAYERS, C = 2, 32


def made(dtype=torch.bfloat16, *, plan=PLAN, fuse=True, device="cpu", **sizes):
    model = tiny.pixart(layers=LAYERS, **sizes).transformer.to(device, dtype).eval()
    quantize_random_(model, plan)
    if fuse:
        fuse_(model)
    return model


def inputs(dtype=torch.bfloat16, device="cpu"):
    torch.manual_seed(0)
    arguments = {
        "hidden_states": torch.randn(2, 4, 8, 8).to(dtype),
        "encoder_hidden_states": torch.randn(2, 5, 16).to(dtype),
        "encoder_attention_mask": torch.ones(2, 5),
        "timestep": torch.tensor([500, 500]),
    }
    moved = {name: tensor.to(device) for name, tensor in arguments.items()}
    return moved | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


@torch.no_grad()
def output(model, dtype=torch.bfloat16, device="cpu"):
    return model(**inputs(dtype, device)).sample


@pytest.fixture
def losing(monkeypatch):
    """``losing(*roles)``: tuning works on a CPU, where layers of these roles lose."""

    def lose(*roles):
        def judge(shape, x, quantized, floats, obstacle, margin):
            bf16 = any(role in roles for role in shape.roles)
            times = {"bf16_ms": 1.0 if bf16 else 3.0, "ours_ms": 2.0}
            return shape.model_copy(update={**times, "verdict": "bf16" if bf16 else "int8"})

        monkeypatch.setattr(tune, "judge", judge)
        monkeypatch.setattr(tune, "_declined", lambda *_: None)
        monkeypatch.setattr(tune, "obstacle_on", lambda device: None)

    return lose


@pytest.fixture
def in_fp32(monkeypatch):
    """Models of fp32 are tuned, too: there a difference would show."""
    monkeypatch.setattr(tune, "SIXTEEN_BITS", (torch.float32,))


def restored(model):
    return {name for name, m in model.named_modules() if isinstance(m, RestoredLinear)}


def test_layers_that_lose_are_replaced(losing):
    losing("self_attn.qkv", "ffn.down")
    model = made()
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    tuning = tune_(model, lambda: output(model))
    local = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.net.2")
    names = {f"transformer_blocks.{i}.{name}" for i in range(LAYERS) for name in local}
    assert set(tuning.replaced) == restored(model) == names
    assert all(m.weight.dtype == torch.bfloat16 for m in map(model.get_submodule, names))
    after = sum(p.numel() * p.element_size() for p in model.parameters())
    assert tuning.added_bytes == after - before > 0
    assert sum(isinstance(m, QuantLinear) for m in model.modules()) == 10 * LAYERS - len(names)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_it_says(losing):
    losing("self_attn.qkv")
    model = made()
    tuning = tune_(model, lambda: output(model))
    assert {(v.m, v.n, v.k): (v.layers, v.readers, v.verdict) for v in tuning.layers} == {
        (2 * 16, 3 * C, C): (3 * LAYERS, 3, "bf16"),
        (2 * 16, C, C): (3 * LAYERS, 1, "int8"),
        (2 * 5, 2 * C, C): (2 * LAYERS, 2, "int8"),
        (2 * 16, 4 * C, C): (LAYERS, 1, "int8"),
        (2 * 16, C, 4 * C): (LAYERS, 1, "int8"),
    }
    assert (tuning.before_ms, tuning.after_ms) == (2.0 * 8 * LAYERS - 2.0 * LAYERS, 26.0)
    assert "6 of 20 quantized layers compute in 16 bits" in tuning.sentence
    assert "26.00 ms instead of 28.00 ms" in tuning.sentence
    assert tuning.table().rows[0][0] == "self_attn.qkv"
    assert type(tuning).model_validate_json(tuning.model_dump_json()) == tuning


@pytest.mark.parametrize(
    "roles",
    [
        ("self_attn.qkv",),
        ("self_attn.out", "cross_attn.q", "cross_attn.out"),
        ("cross_attn.kv",),
        ("ffn.up",),
        ("ffn.down",),
        ("self_attn.qkv", "cross_attn.kv", "ffn.up", "ffn.down", "self_attn.out"),
    ],
)
@pytest.mark.parametrize("weight", ["int8", "int4"])
def test_a_fused_model_goes_on_working(losing, in_fp32, roles, weight):
    """Fused and not, a tuned model computes the same."""
    losing(*roles)
    model = made(torch.float32, plan=PLAN.model_copy(update={"weight": weight}))
    quantized = output(model, torch.float32)
    tune_(model, lambda: output(model, torch.float32))
    tuned = output(model, torch.float32)
    assert restored(model)
    assert unfuse_(model) == LAYERS
    torch.testing.assert_close(tuned, output(model, torch.float32), rtol=1e-3, atol=1e-3)
    assert 0 < (tuned - quantized).norm() < 0.05 * quantized.norm()


def test_readers_of_one_input_with_several_roles(losing, in_fp32):
    """FLUX.1's single blocks: q, k, v and the feed-forward read the same tensor."""
    losing("ffn.up")
    model = tiny.flux().eval().requires_grad_(False)
    quantize_random_(model, PLAN)
    fuse_(model)
    tuning = tune_(model, lambda: model(**tiny.flux_inputs()))
    local = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    single = {f"single_transformer_blocks.{i}.{name}" for i in range(3) for name in local}
    assert single <= set(tuning.replaced)
    assert not any(".attn." in name for name in set(tuning.replaced) - single)
    with torch.no_grad():
        fused = model(**tiny.flux_inputs())[0]
        unfuse_(model)
        torch.testing.assert_close(fused, model(**tiny.flux_inputs())[0], rtol=1e-3, atol=1e-3)


def test_blocks_that_are_not_fused_are_measured_layer_by_layer(losing):
    losing()
    model = made(fuse=False)
    assert {v.readers for v in tune_(model, lambda: output(model)).layers} == {1}


def test_what_something_sits_on_stays(losing):
    losing("self_attn.qkv")
    model = made()
    name = "transformer_blocks.0.attn1.to_q"
    model.get_submodule(name).register_forward_hook(lambda m, args, y: y)
    tuning = tune_(model, lambda: output(model))
    assert name not in tuning.replaced
    assert "transformer_blocks.0.attn1.to_k" in tuning.replaced
    assert isinstance(model.get_submodule(name), QuantLinear)


def test_what_cannot_be_measured_stays(losing, monkeypatch):
    losing()
    monkeypatch.setattr(
        tune, "judge", lambda shape, *_: shape.model_copy(update={"verdict": "bf16", "reason": "?"})
    )
    model = made()
    tuning = tune_(model, lambda: output(model))
    assert {(v.verdict, v.reason) for v in tuning.layers} == {(None, "?")}
    assert not tuning.replaced
    assert "All 20 quantized layers stay" in tuning.sentence


def test_measured_for_real(losing, monkeypatch):
    judge = tune.judge
    losing()
    monkeypatch.setattr(tune, "judge", judge)
    model = made()
    tuning = tune_(model, lambda: output(model))
    assert all(v.is_timed for v in tuning.layers)
    for verdict in tuning.layers:
        slower = verdict.all_bf16_ms <= (1 - tune.MARGIN) * verdict.all_ours_ms
        assert (verdict.verdict == "bf16") == slower
    lost = sum(v.layers for v in tuning.layers if v.verdict == "bf16")
    assert len(tuning.replaced) == len(restored(model)) == lost
    assert tuning.after_ms <= tuning.before_ms


def test_static_scales_are_measured_with_inputs_of_their_size(losing, monkeypatch):
    judge = tune.judge
    losing()
    monkeypatch.setattr(tune, "judge", judge)
    plan = PLAN.model_copy(update={"granularity": "tensor"})
    model = tiny.pixart(layers=1).transformer.bfloat16()
    amax = dict.fromkeys(tune.adapter_for(model).layers(model), torch.tensor(1e3))
    quantize_random_(model, plan, amax)
    tuning = tune_(model, lambda: output(model))
    assert all(v.is_timed for v in tuning.layers), tuning.layers


def test_declined():
    model = made()
    on_cpu = tune_(model, lambda: output(model))
    assert on_cpu.sentence.startswith("The model is not on a GPU")
    floats = tiny.pixart(layers=1).transformer
    assert "no quantized layers" in tune_(floats, lambda: None).sentence
    assert not on_cpu.replaced
    assert not restored(model)


def test_declined_in_fp32(losing):
    losing("ffn.up")
    model = made(torch.float32)
    tuning = tune_(model, lambda: output(model, torch.float32))
    assert "computes in fp32" in tuning.sentence
    assert not restored(model)


def test_a_run_that_does_not_reach_the_model(losing):
    losing()
    model = made()
    with refuses(InputError, "run called no quantized layer"):
        tune_(model, lambda: None)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_saving_refuses(losing, tmp_path):
    losing()
    model = made()
    tune_(model, lambda: output(model))
    model.save_pretrained(tmp_path / "untuned")
    losing("ffn.down")
    tune_(model, lambda: output(model))
    plan = Plan(model="pixart", recipe="w8a8", layers={})
    for tuned in (model, copy.deepcopy(model)):
        with refuses(CheckpointError, "save it before tuning, or load it again"):
            tuned.save_pretrained(tmp_path / "tuned")
        with refuses(CheckpointError, "save it before tuning, or load it again"):
            checkpoint.save(tuned, tmp_path / "tuned", plan, diagnostics={})
    assert not (tmp_path / "tuned").exists()


class Lora(nn.Module):
    """As PEFT wraps a linear layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("local", ["attn1.to_v", "ff.net.2"])
def test_a_lora_on_a_replaced_layer(losing, in_fp32, local):
    losing("self_attn.qkv", "ffn.down")
    model = made(torch.float32)
    tune_(model, lambda: output(model, torch.float32))
    plain, name = output(model, torch.float32), f"transformer_blocks.0.{local}"
    base = model.get_submodule(name)
    assert isinstance(base, RestoredLinear)
    model.set_submodule(name, Lora(base))
    changed = output(model, torch.float32)
    assert (changed - plain).norm() > 0.01 * plain.norm()
    unfuse_(model)
    torch.testing.assert_close(changed, output(model, torch.float32), rtol=1e-3, atol=1e-3)
    fuse_(model)
    model.set_submodule(name, base)
    assert torch.equal(output(model, torch.float32), plain)


def test_a_cuda_graph_would_be_recorded_anew(losing):
    losing("self_attn.out")
    model = made()
    look = graphs._watch(model)
    seen = look()
    tune_(model, lambda: output(model))
    assert look() != seen


@pytest.mark.gpu
def test_on_a_gpu():
    model = made(device="cuda", heads=8, head_dim=64)
    quantized = output(model, device="cuda")
    capture_(model)
    tuning = tune_(model, lambda: output(model, device="cuda"))
    assert torch.cuda.get_device_name() in tuning.sentence
    assert all(v.is_timed for v in tuning.layers), tuning.layers
    assert restored(model) == set(tuning.replaced)
    assert tuning.after_ms <= tuning.before_ms
    replayed = output(model, device="cuda")
    assert graphs.is_captured(model)
    assert torch.equal(replayed, output(model, device="cuda"))
    release_(model)
    assert torch.equal(replayed, output(model, device="cuda"))
    assert (replayed - quantized).norm() < 0.1 * quantized.norm()


@pytest.mark.gpu
def test_a_replaced_group_in_a_graph_on_a_gpu(losing):
    losing("self_attn.qkv", "ffn.down")
    model = made(device="cuda", heads=8, head_dim=64)
    capture_(model)
    output(model, device="cuda")
    tuning = tune_(model, lambda: output(model, device="cuda"))
    assert len(tuning.replaced) == 4 * LAYERS
    replayed = output(model, device="cuda")
    assert graphs.is_captured(model)
    release_(model)
    assert torch.equal(replayed, output(model, device="cuda"))
