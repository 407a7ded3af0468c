"""Blocks and denoisers of small models: what can run is timed, what cannot says why."""

import dataclasses
from importlib.util import find_spec

import pytest
import torch

from checks import refuses
from viditq.bench import BenchResult, bench_models, random_models, tune
from viditq.bench.variants import VARIANTS, variants_named
from viditq.errors import InputError
from viditq.nn import QuantLinear
from viditq.ops.quantize_rows import balance_rows
from viditq.plan import LayerPlan

CPU = torch.device("cpu")
EAGER = ("bf16", "w8a8", "w8a8-unbalanced", "w8a8-static", "w8a8-fused-static", "w4a8")


def run(kind, model, variants=EAGER, **options):
    return bench_models(
        kind, "cpu", models=[model], variants=variants, budget_s=0.01, **options
    ).rows


def test_denoiser():
    rows = {row.op: row for row in run("denoisers", "small-pixart")}
    assert list(rows) == list(EAGER)
    for row in rows.values():
        assert row.timing is not None, row.skipped
        assert (row.model, row.part) == ("small-pixart", "denoiser")
        assert row.check.startswith("relative error ")
        assert row.first_call_s > 0
        assert row.attention == ("flash_attention_for_cpu",)
    assert rows["bf16"].check == "relative error 0"
    assert rows["w4a8"].weight_bytes < rows["w8a8"].weight_bytes < rows["bf16"].weight_bytes
    assert rows["w8a8"].weight_bytes > rows["w8a8-unbalanced"].weight_bytes  # smoothing
    assert rows["w8a8-static"].weight_bytes > rows["w8a8"].weight_bytes  # the scales


@pytest.mark.parametrize("dynamic", ["w8a8", "w8a8-fused"])
def test_static_variants_differ_in_nothing_else(dynamic):
    static = VARIANTS[f"{dynamic}-static"]
    plan = static.plan.model_copy(update={"granularity": "token"})
    assert dataclasses.replace(static, name=dynamic, plan=plan) == VARIANTS[dynamic]


def test_static_ranges_are_those_of_the_balanced_inputs(small):
    plan, name = VARIANTS["w8a8-static"].plan, "transformer_blocks.0.attn1.to_q"
    x, float_layer = torch.randn(6, 32).bfloat16(), small.get_submodule(name)
    amax = random_models.largest_inputs(small, plan, lambda: float_layer(x))
    assert set(amax) == {name}
    ranges = dict.fromkeys(random_models.block_linears(small), amax[name])
    layer = random_models.quantize_random_(small, plan, ranges).get_submodule(name)
    balanced = balance_rows(x, layer.smooth, layer.hadamard)
    torch.testing.assert_close(layer.input_scale * 127, balanced.abs().max())


def test_blocks():
    rows = run("blocks", "small-latte", ("bf16", "w8a8"))
    assert [(row.op, row.part) for row in rows] == [
        (variant, part)
        for variant in ("bf16", "w8a8")
        for part in ("transformer_blocks", "temporal_transformer_blocks")
    ]
    assert all(row.timing is not None for row in rows)


@pytest.mark.parametrize("kind", ["blocks", "denoisers"])
def test_two_kinds_of_blocks_fused(kind):
    rows = run(kind, "small-flux", ("bf16", "w8a8-fused", "w4a8-fused"))
    parts = (
        ["transformer_blocks", "single_transformer_blocks"] if kind == "blocks" else ["denoiser"]
    )
    assert [row.part for row in rows] == 3 * parts
    for row in rows:
        assert row.timing is not None, row.skipped


def test_a_model_without_adapter():
    eager, quantized = run("denoisers", "small-autoencoder", ("bf16", "w8a8"))
    assert eager.timing is not None, eager.skipped
    assert eager.weight_bytes is None
    assert quantized.skipped == "no adapter for AutoencoderKL"


@pytest.mark.parametrize("kind", ["blocks", "denoisers"])
def test_fused(kind):
    fused = ("w8a8-fused", "w8a8-fused-unbalanced", "w4a8-fused")
    for model in ("small-pixart", "small-wan"):
        for row in run(kind, model, fused):
            assert row.timing is not None, row.skipped


@pytest.mark.parametrize("kind", ["blocks", "denoisers"])
def test_tuned(kind, monkeypatch):
    """Where 16 bits always win, all layers take them; their weights are counted."""

    def judge(shape, *_):
        return shape.model_copy(update={"verdict": "bf16", "bf16_ms": 1.0, "ours_ms": 2.0})

    monkeypatch.setattr(tune, "judge", judge)
    monkeypatch.setattr(tune, "_declined", lambda *_: None)
    monkeypatch.setattr(tune, "obstacle_on", lambda device: None)
    tuned = VARIANTS["w8a8-fused-tuned-graph"]
    assert dataclasses.replace(tuned, name="", tuned=False) == dataclasses.replace(
        VARIANTS["w8a8-fused-graph"], name=""
    )
    monkeypatch.setitem(VARIANTS, tuned.name, dataclasses.replace(tuned, graph=False))
    rows = run(kind, "small-pixart", ("bf16", "w8a8-fused", tuned.name))
    floats, quantized, restored = rows
    assert restored.timing is not None, restored.skipped
    assert restored.weight_bytes == floats.weight_bytes > quantized.weight_bytes


def test_blocks_that_return_two_tensors():
    for row in run("blocks", "small-cogvideox", ("bf16", "w8a8", "w4a8")):
        assert row.timing is not None, row.skipped
        assert row.part == "transformer_blocks"


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is here")
def test_what_is_not_here_has_a_reason():
    [row] = run("denoisers", "small-pixart", ["torchao-int8-compiled"])
    assert row.skipped == "torchao is not installed"


def test_a_model_without_fused_blocks_has_a_reason(monkeypatch):
    monkeypatch.setattr("viditq.bench.variants.fuse_", lambda model: 0)
    [row] = run("denoisers", "small-pixart", ["w8a8-fused"])
    assert row.skipped == "no block of PixArtTransformer2DModel has a fused form"


def test_auto_is_what_can_be():
    """On the CPU no graph; PixArt's blocks have a fused form, CogVideoX's may have none."""
    for model in ("small-pixart", "small-cogvideox"):
        rows = {row.op: row for row in run("denoisers", model, ("bf16-auto", "w8a8-auto"))}
        for row in rows.values():
            assert row.timing is not None, row.skipped
            assert row.graph is False
        assert rows["bf16-auto"].fused_blocks == 0
        assert rows["w8a8-auto"].fused_blocks in ((2,) if model == "small-pixart" else (0, 2))


def test_no_graph_has_a_reason():
    [row] = run("denoisers", "small-pixart", ["w8a8-fused-graph"])
    assert row.skipped == "cannot be captured as a CUDA graph"


def test_a_wrong_layer_has_no_speed(monkeypatch):
    right = QuantLinear.forward
    monkeypatch.setattr(QuantLinear, "forward", lambda self, x: 2 * right(self, x))
    for kind in ("blocks", "denoisers"):
        eager, wrong = run(kind, "small-pixart", ("bf16", "w8a8"))
        assert eager.timing is not None
        assert wrong.timing is None
        assert wrong.skipped.startswith("wrong result: relative error ")


def test_a_run_that_is_stopped_keeps_its_rows(monkeypatch, tmp_path):
    def stopped(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(QuantLinear, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("denoisers", "small-pixart", file=tmp_path / "d.json")
    [kept] = BenchResult.load(tmp_path / "d.json").rows
    assert kept.op == "bf16"


def test_a_model_that_does_not_run(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("80 GiB")

    monkeypatch.setattr("viditq.bench.denoisers.build", full)
    rows = run("denoisers", "small-pixart")
    assert {row.skipped for row in rows} == {"the bf16 model does not run: out of memory"}
    assert [row.op for row in rows] == list(EAGER)


def test_unknown_names():
    with refuses(InputError, "small-sd3", "small-pixart"):
        run("blocks", "small-sd3")
    with refuses(InputError, "w3a3", "w8a8-fused"):
        run("blocks", "small-pixart", ["w3a3"])


def test_peers_only_when_asked_for():
    ours = variants_named((), torchao=False)
    assert not any(variant.peer for variant in ours)
    peers = [variant for variant in variants_named((), torchao=True) if variant not in ours]
    assert peers == [variant for variant in VARIANTS.values() if variant.peer]


def test_peers_beside_the_variants_named():
    names = [variant.name for variant in variants_named(["bf16", "w8a8"], torchao=True)]
    assert names == ["bf16", "w8a8", "torchao-int8-compiled", "torchao-fp8-compiled"]
    assert variants_named(names, torchao=True) == variants_named(names, torchao=False)


def test_auto_only_when_asked_for():
    unnamed = {variant.name for variant in variants_named((), torchao=True)}
    assert VARIANTS.keys() - unnamed == {"bf16-auto", "w8a8-auto", "w4a8-auto"}


def test_layers_that_share_an_input_share_their_balance(small):
    model = random_models.quantize_random_(small, LayerPlan(smooth=0.5, hadamard=16))
    attention = model.get_submodule("transformer_blocks.0.attn1")
    assert attention.to_q.smooth.equal(attention.to_v.smooth)
    assert not attention.to_q.smooth.equal(attention.to_out[0].smooth)
    assert (attention.to_q.smooth < 0).any()
    assert attention.to_q.hadamard == 16


def test_weights_are_the_same_at_every_time(small):
    again = build()
    for name, parameter in small.named_parameters():
        assert parameter.equal(again.get_parameter(name)), name
        assert parameter.dtype == torch.bfloat16


def build():
    from viditq.bench.models import MODELS

    case = MODELS["small-pixart"]
    return random_models.build(case.transformer, case.config, CPU, torch.bfloat16)


@pytest.fixture
def small():
    return build()


def test_what_diffusers_keeps_in_fp32_is_fp32():
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32}
    config |= {"text_dim": 16, "freq_dim": 16}
    model = random_models.build("WanTransformer3DModel", config, CPU, torch.bfloat16)
    assert model.scale_shift_table.dtype == torch.float32
    assert model.get_parameter("blocks.0.norm2.weight").eq(1).all()
    assert model.get_parameter("blocks.0.attn1.to_q.weight").dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["blocks", "denoisers"])
def test_on_a_gpu(kind):
    variants = [*EAGER, "bf16-compiled", "w8a8-compiled", "bf16-graph", "w8a8-auto"]
    result = bench_models(kind, "cuda", models=["small-latte"], variants=variants, budget_s=0.1)
    for row in result.rows:
        assert row.timing is not None, (row.op, row.skipped)
        assert row.peak_bytes > 0
        assert row.graph is row.op.endswith(("graph", "auto"))
