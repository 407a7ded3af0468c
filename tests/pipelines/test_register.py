"""diffusers' own loader reads quantized checkpoints: same samples, nothing left behind."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from diffusers.quantizers import auto
from safetensors.torch import load_file, save_file

from checks import refuses
from viditq import checkpoint, pipelines
from viditq.checkpoint import WEIGHTS, WEIGHTS_INDEX
from viditq.errors import CheckpointError, PlanError
from viditq.nn import FP32_TENSORS, QuantLinear

SAMPLES = {"prompts": ["a blue star", "a large red circle"], "seeds": [101, 102], "steps": 2}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Registration lasts as long as the test."""
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        for name, value in list(mapping.items()):
            monkeypatch.setitem(mapping, name, value)
        monkeypatch.setitem(mapping, "viditq", None)
    pipelines.register()


def stock(source, **arguments):
    pipe = DiffusionPipeline.from_pretrained(source, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Packed weights with smoothing and rotation; and static scales, which have no dimension.
@pytest.mark.parametrize("preset", ["w4a8", "w8a8-naive", "w6a6"])
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_are_the_same(quantized, kind, preset, dtype):
    source = quantized(kind, preset)
    ours = pipelines.generate(pipelines.load(source, dtype=dtype), **SAMPLES)
    theirs = pipelines.generate(stock(source, dtype=dtype), **SAMPLES)
    assert torch.equal(ours, theirs)


def test_bf16_keeps_scales_and_codes_exact(quantized):
    source = quantized("image", "w4a8")
    stored = load_file(source / "transformer" / WEIGHTS)
    model = PixArtTransformer2DModel.from_pretrained(
        source, subfolder="transformer", dtype=torch.bfloat16
    )
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        quantized_layer = isinstance(model.get_submodule(layer), QuantLinear)
        if quantized_layer and part in (*FP32_TENSORS, "weight"):
            assert tensor.dtype == stored[name].dtype
            assert torch.equal(tensor, stored[name])
        else:
            assert tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("listed", [["pos_embed"], "pos_embed", None])
def test_the_classs_list_of_fp32_modules_is_left_as_it_was(quantized, monkeypatch, listed):
    """diffusers hands out the class's own list, and the scales are put on it while loading."""
    source = quantized("image", "w8a8-naive") / "transformer"
    before = list(listed) if isinstance(listed, list) else listed
    monkeypatch.setattr(PixArtTransformer2DModel, "_keep_in_fp32_modules", listed)
    model = PixArtTransformer2DModel.from_pretrained(source, dtype=torch.bfloat16)
    assert model.pos_embed.proj.weight.dtype == (torch.float32 if listed else torch.bfloat16)
    assert model.transformer_blocks[0].attn1.to_q.scale.dtype == torch.float32
    assert PixArtTransformer2DModel._keep_in_fp32_modules == before


def test_saved_again_by_diffusers_it_is_the_same_checkpoint(quantized, tmp_path):
    source = quantized("image", "w4a8")
    stock(source).save_pretrained(tmp_path / "again")
    first, second = (load_file(f / "transformer" / WEIGHTS) for f in (source, tmp_path / "again"))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    ours, again = (
        pipelines.generate(pipelines.load(f), **SAMPLES) for f in (source, tmp_path / "again")
    )
    assert torch.equal(ours, again)


def test_float_pipelines_load_as_before(floats):
    a, b = stock(floats["image"]).transformer, pipelines.load(floats["image"]).transformer
    assert not any(isinstance(m, QuantLinear) for m in a.modules())
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def test_twice_is_once(quantized):
    pipelines.register()
    pipelines.register()
    stock(quantized("image", "w8a8-naive"))


def test_without_it_diffusers_says_what_is_missing(quantized, monkeypatch):
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "viditq")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "viditq")
    with pytest.raises(ValueError, match="viditq"):
        PixArtTransformer2DModel.from_pretrained(quantized("image", "w8a8-naive") / "transformer")


class TestDamaged:
    @pytest.fixture
    def folder(self, quantized, tmp_path):
        return shutil.copytree(quantized("image", "w8a8-naive") / "transformer", tmp_path / "own")

    def edit(self, folder, change):
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    def test_a_newer_schema(self, folder):
        self.edit(folder, lambda entry: entry | {"schema_version": 2})
        with refuses(CheckpointError, "schema version 2"):
            PixArtTransformer2DModel.from_pretrained(folder)

    def test_an_unknown_field(self, folder):
        self.edit(folder, lambda entry: entry | {"group_size": 64})
        with refuses(CheckpointError, "group_size"):
            PixArtTransformer2DModel.from_pretrained(folder)

    def test_a_plan_of_another_model(self, folder):
        self.edit(folder, lambda entry: entry | {"plan": entry["plan"] | {"model": "latte"}})
        with refuses(PlanError, "latte"):
            PixArtTransformer2DModel.from_pretrained(folder)

    # Of a quantized layer, and of one that stayed float.
    @pytest.mark.parametrize("name", ["transformer_blocks.1.ff.net.2.input_scale", "proj_out.bias"])
    @pytest.mark.parametrize("sharded", [False, True])
    def test_a_missing_tensor(self, folder, name, sharded, monkeypatch):
        """Refused in the words of the strict loader, though the index of shards may name it."""
        tensors = load_file(folder / WEIGHTS)
        if sharded:
            names = dict.fromkeys(tensors, WEIGHTS)
            index = {"metadata": {"total_size": 1}, "weight_map": names}
            (folder / WEIGHTS_INDEX).write_text(json.dumps(index))
        del tensors[name]
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(CheckpointError) as strict:
            checkpoint.load(folder)
        monkeypatch.setattr(PixArtTransformer2DModel, "_keep_in_fp32_modules", ["pos_embed"])
        with refuses(CheckpointError, str(folder), repr(name), "1 of", str(strict.value)):
            PixArtTransformer2DModel.from_pretrained(folder)
        assert PixArtTransformer2DModel._keep_in_fp32_modules == ["pos_embed"]

    @pytest.mark.parametrize("part", ["weight", "scale", "input_scale"])
    def test_a_tensor_of_another_shape(self, folder, part):
        name = f"transformer_blocks.0.attn1.to_q.{part}"
        tensors = load_file(folder / WEIGHTS)
        tensors[name] = torch.zeros(3, 5, dtype=tensors[name].dtype)
        save_file(tensors, folder / WEIGHTS)
        with refuses(CheckpointError, name, "(3, 5)"):
            PixArtTransformer2DModel.from_pretrained(folder)
