"""The doctor lists what a pipeline has, measures what can be measured, and says why not."""

import pytest
import torch

import tiny
from checks import refuses
from viditq.bench import diagnose, doctor, verdicts
from viditq.bench.random_models import quantized_at_random
from viditq.bench.verdicts import LayerVerdict
from viditq.blocks import products as products_module
from viditq.errors import InputError, PipelineError
from viditq.plan import LayerPlan

CPU = torch.device("cpu")
PLAN = LayerPlan(smooth=0.5, hadamard=16)


def shapes(diagnosis):
    return {(v.m, v.n, v.k): (v.roles, v.layers) for v in diagnosis.layers}


def test_image_pipeline(floats):
    diagnosis = diagnose(floats["image"], "cpu")
    square = ("self_attn.out", "cross_attn.q", "cross_attn.out")
    assert shapes(diagnosis) == {
        (2 * 16, 3 * 32, 32): (("self_attn.qkv",), 2 * 3),
        (2 * 16, 32, 32): (square, 2 * 3),
        (2 * 300, 2 * 32, 32): (("cross_attn.kv",), 2 * 2),
        (2 * 16, 128, 32): (("ffn.up",), 2),
        (2 * 16, 32, 128): (("ffn.down",), 2),
    }
    assert diagnosis.sentence.startswith("There is no GPU to measure")
    assert all(v.verdict is v.bf16_ms is v.ours_ms is None for v in diagnosis.layers)
    table = diagnosis.table()
    assert len(table.rows) == 5
    assert table.rows[0][:3] == ("self_attn.qkv", "2 × 3", "32 × 96 × 32")
    assert "32 × 128 × 32" in table.to_markdown()


def test_blocks_without_a_fused_form_multiply_layer_by_layer(floats, monkeypatch):
    monkeypatch.setattr(doctor, "has_fused_form", lambda block: False)
    diagnosis = diagnose(floats["image"], "cpu")
    assert shapes(diagnosis)[2 * 16, 32, 32][1] == 2 * 6
    assert {v.readers for v in diagnosis.layers} == {1}


def test_video_pipeline(floats):
    found = shapes(diagnose(floats["video"], "cpu"))
    assert found[2 * 2 * 16, 128, 32] == (("ffn.up",), 2)
    assert found[2 * 2 * 120, 64, 32] == (("cross_attn.kv",), 2)


def test_open_sora_shows_its_caption_once(tmp_path):
    found = shapes(diagnose(tiny.saved(tiny.opensora(), tmp_path / "opensora"), "cpu"))
    assert found[2 * 2 * 16, 96, 32] == (("self_attn.qkv", "temporal_attn.qkv"), 4)
    assert found[2 * 120, 64, 32] == (("cross_attn.kv",), 2)


def test_open_sora_of_any_size(tmp_path):
    found = shapes(diagnose(tiny.saved(tiny.opensora12(), tmp_path / "opensora"), "cpu"))
    roles = ("self_attn.qkv", "temporal_attn.qkv")
    assert found[2 * 15 * 15 * 27, 96, 32] == (roles, 4)
    assert found[2 * 300, 64, 32] == (("cross_attn.kv",), 4)


def test_latte_for_classes_reads_no_caption(tmp_path):
    diagnosis = diagnose(tiny.saved(tiny.latte_of_classes(), tmp_path / "latte"), "cpu")
    assert shapes(diagnosis) == {
        (2 * 2 * 16, 96, 32): (("self_attn.qkv", "temporal_attn.qkv"), 4),
        (2 * 2 * 16, 32, 32): (("self_attn.out", "temporal_attn.out"), 4),
        (2 * 2 * 16, 128, 32): (("ffn.up",), 4),
        (2 * 2 * 16, 32, 128): (("ffn.down",), 4),
    }


def test_tokens_may_be_given(floats):
    found = shapes(diagnose(floats["image"], "cpu", tokens=7))
    assert {m for m, _, _ in found} == {7, 600}


def test_bundled_pipeline():
    diagnosis = diagnose("shapes-image", "cpu")
    assert diagnosis.transformer == "PixArtTransformer2DModel"
    assert sum(v.layers for v in diagnosis.layers) == 8 * 10
    assert {v.weight for v in diagnosis.layers} == {"int8"}


def test_quantized_pipeline(quantized):
    """Its own plan is followed."""
    diagnosis = diagnose(quantized("image", "w8a8-naive"), "cpu")
    assert sum(v.layers for v in diagnosis.layers) == 20


def test_no_gpu_where_one_is_asked_for(floats, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    diagnosis = diagnose(floats["image"], "cuda")
    assert "no GPU" in diagnosis.sentence
    assert diagnosis.layers


def verdict(m=8, n=48, k=32, **others):
    settings = {"roles": ("ffn.up",), "layers": 3, "m": m, "n": n, "k": k, "weight": "int8"}
    return LayerVerdict(**settings | others)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        PLAN.model_copy(update={"granularity": "tensor"}),
        LayerPlan(weight="int4"),
        LayerPlan(),
    ],
)
def test_measuring(plan):
    measured = doctor.measure_shape(verdict(), [(48, plan)], CPU, None)
    assert measured.bf16_ms > 0
    assert measured.ours_ms > 0
    assert (measured.verdict == "int8") == (measured.ours_ms < measured.bf16_ms)
    assert (measured.verdict == "int8") == (measured.reason is None)


def take_ms(monkeypatch, bf16, ours):
    """Let layers take so long."""
    times = iter((bf16, ours))
    timing = type(
        "Timing", (), {"__init__": lambda self, *_: vars(self).update(median_ms=next(times))}
    )
    monkeypatch.setattr(verdicts, "measure", timing)


@pytest.mark.parametrize(("ours", "expected"), [(1.04, "int8"), (1.06, "bf16")])
def test_a_margin(monkeypatch, ours, expected):
    take_ms(monkeypatch, 1.0, ours)
    linear, x = torch.nn.Linear(32, 48), torch.randn(8, 32)
    quantized = quantized_at_random(linear, PLAN, x)
    judged = verdicts.judge(verdict(), x, [quantized], [linear], margin=0.05)
    assert judged.verdict == expected


def test_readers_of_one_input_are_quantized_and_multiplied_once(monkeypatch):
    products = []

    def counted(*args, **kwargs):
        products.append(args[2])
        return read_products(*args, **kwargs)

    read_products = products_module.multiply
    monkeypatch.setattr(products_module, "multiply", counted)
    shape = verdict(n=32 + 8, layers=4, readers=2)
    measured = doctor.measure_shape(shape, [(32, PLAN), (8, PLAN)], CPU, None)
    assert measured.is_timed
    assert {tuple(layer.out_features for layer in layers) for layers in products} == {(32, 8)}
    assert measured.all_ours_ms == 2 * measured.ours_ms


@pytest.mark.parametrize(
    ("m", "obstacle", "reason"),
    [
        (8, None, "too few tokens (8)"),
        (4096, None, "quantizing costs more than the product saves at N = 8, K = 16"),
        (8, "Triton is not installed.", "Triton is not installed."),
    ],
)
def test_reasons_for_bf16(monkeypatch, m, obstacle, reason):
    take_ms(monkeypatch, 1.0, 2.0)
    measured = doctor.measure_shape(verdict(m, 8, 16), [(8, PLAN)], CPU, obstacle)
    assert measured.verdict == "bf16"
    assert measured.reason.startswith(reason)


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(verdicts, "read", lambda x, layers: [x.values().new_zeros(8, 48)])
    measured = doctor.measure_shape(verdict(), [(48, PLAN)], CPU, None)
    assert (measured.verdict, measured.bf16_ms, measured.ours_ms) == ("bf16", None, None)
    assert "wrong result" in measured.reason


def test_sentence_adds_up():
    timed = [
        verdict().model_copy(update={"bf16_ms": 2.0, "ours_ms": 1.0, "verdict": "int8"}),
        verdict().model_copy(
            update={"bf16_ms": 1.0, "ours_ms": 5.0, "verdict": "bf16", "reason": "slow"}
        ),
    ]
    diagnosis = doctor.Diagnosis(
        pipeline="a", transformer="A", device="H200", obstacle=None, layers=tuple(timed)
    )
    assert diagnosis.sentence == (
        "3 of 6 layers get faster on H200: all block linears of a step take 9.00 ms in bf16 and "
        "6.00 ms with these verdicts (1.50×)."
    )
    assert "viditq.tune_" in diagnosis.advice
    assert diagnosis.model_copy(update={"layers": tuple(timed[:1])}).advice is None
    assert [row[-1] for row in diagnosis.table().rows] == ["int8", "bf16 — slow"]


def test_no_such_pipeline(tmp_path):
    with refuses(PipelineError, "nowhere"):
        diagnose("nowhere", "cpu")
    with refuses(PipelineError, str(tmp_path)):
        diagnose(tmp_path, "cpu")


def test_no_such_device(floats):
    with refuses(InputError, "tpu"):
        diagnose(floats["image"], "tpu")


def test_a_broken_configuration(floats, tmp_path):
    import shutil

    broken = shutil.copytree(floats["image"], tmp_path / "broken")
    (broken / "transformer" / "config.json").write_text("{}")
    with refuses(PipelineError, "config.json", "_class_name"):
        diagnose(broken, "cpu")


@pytest.mark.gpu
def test_on_a_gpu(floats):
    diagnosis = diagnose(floats["image"], "cuda")
    assert all(v.bf16_ms and v.ours_ms and v.verdict for v in diagnosis.layers)
    assert torch.cuda.get_device_name() in diagnosis.sentence
