"""The table of full-size models: what diffusers makes of it, without storage."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from viditq.bench import bench_models, models
from viditq.bench.models import (
    MODELS,
    Fill,
    ModelCase,
    Noise,
    Valid,
    make_inputs,
    models_named,
)
from viditq.models import transformer_class
from viditq.pipelines.families import FAMILIES

# Counted by hand from the published configurations; without text encoder and VAE.
BILLIONS = {
    "pixart-alpha": 0.61,
    "pixart-sigma": 0.61,
    "latte": 1.06,
    "latte-class": 0.67,
    "opensora-1.0": 0.76,
    "opensora-1.2": 1.21,
    "opensora-1.2-720p": 1.21,
    "wan-1.3b": 1.42,
    "wan-14b": 14.3,
    "wan2.2-5b": 5.0,
    "flux-dev": 11.9,
    "cogvideox-2b": 1.69,
    "sd3.5-medium": 2.24,
    "sd3.5-large": 8.06,
    "sana-1.6b": 1.60,
    "qwen-image": 20.4,
    "flux2-dev": 32.2,
    "ltx-2b": 1.92,
    "hunyuan-video": 12.8,
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_case(case):
    with torch.device("meta"):
        model = transformer_class(case.transformer)(**case.config)
        small = transformer_class(case.transformer)(**case.one_of_each)
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert billions == pytest.approx(BILLIONS[case.name], rel=0.01)
    for name, count in case.blocks.items():
        assert len(model.get_submodule(name)) == case.config[count]
        assert len(small.get_submodule(name)) == 1
    assert model.config.items() >= case.config.items()
    assert set(case.inputs) <= set(inspect.signature(model.forward).parameters)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_its_pipeline(case):
    if case.pipeline in FAMILIES:
        assert FAMILIES[case.pipeline].adapter.transformer == case.transformer
    else:
        assert hasattr(diffusers, case.pipeline)


# Fewer tokens and heads, for a CPU.
SMALL_INPUTS = {
    "pixart-alpha": {"hidden_states": Noise((2, 4, 8, 8))},
    "latte-class": {"hidden_states": Noise((2, 4, 2, 8, 8))},
    "opensora-1.0": {"hidden_states": Noise((2, 4, 2, 8, 8))},
    "opensora-1.2": {"hidden_states": Noise((2, 4, 2, 6, 9))},
    "wan2.2-5b": {
        "hidden_states": Noise((1, 48, 2, 4, 4)),
        "timestep": Fill(500, (1, 8), torch.int64),
    },
}
SMALL_CONFIG = {
    "pixart-alpha": {"num_attention_heads": 4, "cross_attention_dim": 288},
    "latte-class": {"num_attention_heads": 4, "sample_size": 8, "video_length": 2},
    "opensora-1.0": {"num_attention_heads": 4, "sample_size": 8, "video_length": 2},
    "opensora-1.2": {"num_attention_heads": 4},
    "wan2.2-5b": {"num_attention_heads": 2, "ffn_dim": 512},
}


@pytest.mark.parametrize("name", SMALL_INPUTS)
def test_its_blocks_are_quantized(monkeypatch, name):
    case = MODELS[name]
    case = replace(
        case,
        config=case.one_of_each | SMALL_CONFIG[name],
        inputs={**case.inputs, **SMALL_INPUTS[name]},
    )
    monkeypatch.setattr(models, "MODELS", {name: case})
    variants = ("bf16-auto", "w8a8-auto", "w4a8-auto")
    result = bench_models("denoisers", "cpu", models=[name], variants=variants, budget_s=0.01)
    assert not [row.skipped for row in result.rows if row.skipped]
    float_bytes, int8_bytes, int4_bytes = (row.weight_bytes for row in result.rows)
    assert int8_bytes == pytest.approx(float_bytes / 2, rel=0.05)
    assert int4_bytes == pytest.approx(float_bytes / 4, rel=0.1)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_a_call_at_full_size(case):
    """With one block in each list, on tensors that have a shape and no storage."""
    with FakeTensorMode(), torch.inference_mode():
        model = transformer_class(case.transformer)(**case.one_of_each).eval()
        inputs = make_inputs(case, torch.device("cpu"), torch.float32)
        seen = []
        first = model.get_submodule(f"{next(iter(case.blocks))}.0")
        first.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        output = model(**inputs)[0]
    latents = inputs["hidden_states"].shape
    # PixArt and Latte predict a variance beside the noise.
    channels = case.config.get("out_channels", 0) // case.config.get("in_channels", 1) or 1
    assert output.numel() == channels * latents.numel()
    assert output.shape[0] == latents[0]
    tokens = seen[0].shape[:-1].numel()
    assert tokens == latents[0] * case.tokens


def test_inputs():
    inputs = {
        "noise": Noise((2, 3)),
        "fill": Fill(500, (2,), torch.int64),
        "valid": Valid((1, 3), 4),
        "rest": {"resolution": Fill(8, (1, 2)), "aspect_ratio": None},
    }
    case = ModelCase("a", "A", "Transformer", {}, inputs, {})
    made, again = (make_inputs(case, torch.device("cpu"), torch.bfloat16) for _ in range(2))
    assert made["noise"].dtype == torch.bfloat16
    assert made["noise"].equal(again["noise"])
    assert made["fill"].tolist() == [500, 500]
    assert made["valid"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert made["rest"]["resolution"].tolist() == [[8, 8]]
    assert made["rest"]["aspect_ratio"] is None
    assert made["return_dict"] is False


def test_without_names_a_few(monkeypatch):
    monkeypatch.setattr(models, "MODELS", MODELS)
    assert [case.name for case in models_named(())] == [
        *("pixart-sigma", "flux-dev", "latte", "cogvideox-2b", "wan-1.3b", "wan-14b")
    ]
