"""A checkpoint holds all of the model or is refused, with the file and the tensor named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from checks import refuses
from tiny_transformers import CASES
from viditq import checkpoint, pipelines
from viditq.bench.random_models import quantize_random_
from viditq.checkpoint import WEIGHTS
from viditq.errors import CheckpointError, PlanError
from viditq.models import adapter_for
from viditq.nn import QuantLinear
from viditq.plan import LayerPlan, Plan

PRESETS = ["w8a8-naive", "w8a8", "w6a6", "w4a8-naive", "w4a8", "w4a8-tcq", "w8a8-centered"]
# Seeds far from those of calibration; captions of two lengths.
SAMPLES = {"prompts": ["a blue star", "a large red circle over green"], "seeds": [101, 102]}


@pytest.fixture
def damaged(quantized, tmp_path):
    """A pipeline of one's own to break: a cheap preset with packed weights and static scales."""
    return Path(shutil.copytree(quantized("image", "w4a8-naive"), tmp_path / "broken"))


@pytest.fixture
def folder(damaged):
    return damaged / "transformer"


def edit_config(folder: Path, change) -> None:
    path = folder / "config.json"
    data = change(json.loads(path.read_text("utf-8")))
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def edit_entry(folder: Path, change) -> None:
    def apply(config):
        return config | {"quantization_config": change(config["quantization_config"])}

    edit_config(folder, apply)


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["image", "video"])
class TestRoundTrip:
    def test_saved_and_loaded_it_makes_the_same_samples(
        self, floats, quantized, recorded, calibrations, kind, preset
    ):
        """Bit by bit, against the model that was never on disk."""
        from viditq.calibration import observe, observe_gradients
        from viditq.convert import quantize_
        from viditq.plan import Plan

        loaded = pipelines.load(quantized(kind, preset))
        plan = checkpoint.inspect(quantized(kind, preset)).plan
        assert isinstance(plan, Plan)
        pipe = pipelines.load(floats[kind])
        calls, folder = recorded(kind), calibrations[kind]
        stats = observe(pipe.transformer, calls, folder / "stats")
        gradients = observe_gradients(pipe.transformer, calls, folder / "gradients")
        reference = pipelines.generate(pipe, **SAMPLES, steps=2)
        quantize_(pipe.transformer, plan, stats, gradients)
        kept = pipelines.generate(pipe, **SAMPLES, steps=2)
        read = pipelines.generate(loaded, **SAMPLES, steps=2)
        assert torch.equal(read, kept)
        assert not torch.equal(read, reference)

    def test_a_second_saving_changes_nothing(self, quantized, tmp_path, kind, preset):
        source = quantized(kind, preset)
        pipelines.load(source).transformer.save_pretrained(tmp_path / "again")
        first = load_file(source / "transformer" / WEIGHTS)
        second = load_file(tmp_path / "again" / WEIGHTS)
        assert set(first) == set(second)
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype
            assert torch.equal(tensor, second[name])
        a, b = (
            json.loads((f / "config.json").read_text("utf-8"))["quantization_config"]
            for f in (source / "transformer", tmp_path / "again")
        )
        assert a == b

    def test_nothing_but_planned_layers_differs_from_the_float_file(
        self, floats, quantized, kind, preset
    ):
        plan = checkpoint.inspect(quantized(kind, preset)).plan
        before = load_file(floats[kind] / "transformer" / WEIGHTS)
        after = load_file(quantized(kind, preset) / "transformer" / WEIGHTS)
        kept = {n for n in before if n.rpartition(".")[0] not in plan.layers}
        assert kept == {n for n in after if n.rpartition(".")[0] not in plan.layers}
        for name in kept:
            assert torch.equal(after[name], before[name])


class TestDtype:
    def test_bf16_keeps_scales_and_codes_exact(self, quantized):
        folder = quantized("image", "w4a8") / "transformer"
        stored = load_file(folder / WEIGHTS)
        model = checkpoint.load(folder, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items():
            layer, _, part = name.rpartition(".")
            if part in ("scale", "smooth") and isinstance(model.get_submodule(layer), QuantLinear):
                assert torch.equal(tensor, stored[name])
            elif stored[name].is_floating_point():
                assert tensor.dtype == torch.bfloat16
                assert torch.equal(tensor, stored[name].bfloat16())
            else:
                assert torch.equal(tensor, stored[name])

    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_bf16_runs_near_fp32(self, quantized, kind):
        source = quantized(kind, "w8a8")
        wide, narrow = (
            pipelines.generate(pipelines.load(source, dtype=d), **SAMPLES, steps=2)
            for d in (torch.float32, torch.bfloat16)
        )
        assert torch.isfinite(narrow).all()
        assert (wide - narrow).abs().mean() < 0.01

    def test_without_a_dtype_everything_is_as_stored(self, quantized):
        folder = quantized("image", "w8a8") / "transformer"
        stored = load_file(folder / WEIGHTS)
        state = checkpoint.load(folder).state_dict()
        assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in stored.items()}

    def test_a_model_in_evaluation_mode_without_gradients_of_codes(self, quantized):
        model = checkpoint.load(quantized("image", "w8a8") / "transformer")
        assert not model.training
        layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
        assert len(layers) == 20
        assert not any(p.requires_grad for layer in layers for p in layer.parameters())


class TestKeptInFp32:
    """What diffusers keeps in fp32 of a float model, viditq keeps of a quantized one."""

    @pytest.fixture(params=["the class's own", "norm2", ["norm2", "proj_out"], None])
    def theirs(self, request, tmp_path, monkeypatch):
        """The tensors of the float model as diffusers' own loader gives them in bf16."""
        if request.param != "the class's own":
            monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", request.param)
        CASES["wan"].model().save_pretrained(tmp_path / "float")
        model = WanTransformer3DModel.from_pretrained(tmp_path / "float", dtype=torch.bfloat16)
        return model.state_dict()

    @pytest.fixture
    def saved(self, tmp_path):
        def save(dtype):
            model, layer = CASES["wan"].model(), LayerPlan(weight="int8", activation="int8")
            adapter = adapter_for(model)
            names = adapter.layers(model)
            plan = Plan(model=adapter.name, recipe="w8a8", layers=dict.fromkeys(names, layer))
            quantize_random_(model, layer)
            return checkpoint.save(model, tmp_path / "quantized", plan, diagnostics={}, dtype=dtype)

        return save

    def assert_same(self, tensors, theirs):
        shared = [name for name in theirs if f"{name.rpartition('.')[0]}.scale" not in tensors]
        assert len(shared) > 20
        for name in shared:
            assert tensors[name].dtype == theirs[name].dtype, name
            assert torch.equal(tensors[name], theirs[name]), name

    def test_in_loading(self, saved, theirs):
        self.assert_same(checkpoint.load(saved(None), dtype=torch.bfloat16).state_dict(), theirs)

    def test_in_saving(self, saved, theirs):
        self.assert_same(load_file(saved(torch.bfloat16) / WEIGHTS), theirs)


class TestDamagedTensors:
    def test_cut_off(self, folder):
        file = folder / WEIGHTS
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with refuses(CheckpointError, str(file), "cut off"):
            checkpoint.load(folder)

    def test_header_overwritten(self, folder):
        file = folder / WEIGHTS
        file.write_bytes(b"\xff" * 100 + file.read_bytes()[100:])
        with refuses(CheckpointError, str(file)):
            checkpoint.load(folder)

    @pytest.mark.parametrize("size", [0, 7])
    def test_hardly_a_file(self, folder, size):
        (folder / WEIGHTS).write_bytes(b"\0" * size)
        with refuses(CheckpointError, WEIGHTS):
            checkpoint.load(folder)

    def test_gone(self, folder):
        (folder / WEIGHTS).unlink()
        with refuses(CheckpointError, WEIGHTS):
            checkpoint.load(folder)

    @pytest.mark.parametrize("tensor", ["weight", "scale", "input_scale", "bias"])
    def test_missing(self, folder, tensor):
        name = f"transformer_blocks.1.ff.net.2.{tensor}"
        edit_tensors(folder, lambda tensors: tensors.pop(name))
        with refuses(CheckpointError, str(folder), repr(name), "1 of"):
            checkpoint.load(folder)

    def test_missing_from_what_stayed_float(self, folder):
        edit_tensors(folder, lambda tensors: tensors.pop("proj_out.bias"))
        with refuses(CheckpointError, "'proj_out.bias'"):
            checkpoint.load(folder)

    @pytest.mark.parametrize("name", ["extra", "transformer_blocks.0.attn1.to_q.smooth"])
    def test_extra(self, folder, name):
        edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32)}))
        with refuses(CheckpointError, str(folder / WEIGHTS), repr(name), "does not have"):
            checkpoint.load(folder)

    @pytest.mark.parametrize(
        ("name", "wrong", "facts"),
        [
            ("attn1.to_q.weight", torch.zeros(32, 32, dtype=torch.uint8), ("(32, 32)", "(32, 16)")),
            ("attn1.to_q.scale", torch.zeros(16), ("(16,)", "(32,)")),
            ("attn1.to_q.input_scale", torch.zeros(1), ("(1,)", "()")),
            ("attn1.to_q.weight", torch.zeros(32, 16, dtype=torch.int8), ("I8", "U8")),
            ("attn1.to_q.weight", torch.zeros(32, 16), ("F32", "U8")),
            ("attn1.to_q.scale", torch.zeros(32).bfloat16(), ("BF16", "F32")),
            ("attn1.to_q.scale", torch.zeros(32, dtype=torch.int32), ("I32", "F32")),
            ("scale_shift_table", torch.zeros(6, 32, dtype=torch.int32), ("I32", "F32")),
            ("scale_shift_table", torch.zeros(6, 31), ("(6, 31)", "(6, 32)")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_wrong_shape_or_dtype(self, folder, name, wrong, facts):
        name = f"transformer_blocks.0.{name}"
        edit_tensors(folder, lambda tensors: tensors.update({name: wrong}))
        with refuses(CheckpointError, str(folder / WEIGHTS), name, *facts):
            checkpoint.load(folder)

    def test_through_the_pipeline_the_error_is_the_same(self, damaged):
        edit_tensors(damaged / "transformer", lambda tensors: tensors.pop("proj_out.bias"))
        with refuses(CheckpointError, "'proj_out.bias'"):
            pipelines.load(damaged)


class TestShards:
    """Large transformers are stored in several files with an index."""

    @pytest.fixture
    def sharded(self, quantized, tmp_path):
        source = quantized("image", "w8a8") / "transformer"
        checkpoint.load(source).save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
        return tmp_path / "sharded"

    def test_are_read_as_one(self, sharded, quantized):
        whole = checkpoint.load(quantized("image", "w8a8") / "transformer").state_dict()
        parts = checkpoint.load(sharded).state_dict()
        assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
        assert (
            checkpoint.inspect(sharded).size_bytes
            == checkpoint.inspect(quantized("image", "w8a8")).size_bytes
        )

    def test_one_gone(self, sharded):
        last = max(sharded.glob("*.safetensors"))
        last.unlink()
        with refuses(CheckpointError, last.name):
            checkpoint.load(sharded)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', "null"])
    def test_a_damaged_index(self, sharded, text):
        next(sharded.glob("*.index.json")).write_text(text)
        with refuses(CheckpointError, "index.json"):
            checkpoint.load(sharded)


class TestDamagedConfig:
    @pytest.mark.parametrize(
        "change",
        [
            lambda config: "{",
            lambda config: [],
            lambda config: None,
            lambda config: {k: v for k, v in config.items() if k != "_class_name"},
            lambda config: config | {"_class_name": 3},
            lambda config: config | {"quantization_config": "viditq"},
            lambda config: config | {"quantization_config": {"quant_method": "viditq"}},
            lambda config: config | {"num_layers": "two"},
        ],
        ids=[
            "cut off",
            "list",
            "null",
            "no class",
            "class no name",
            "entry no object",
            "entry empty",
            "impossible model",
        ],
    )
    def test_malformed(self, folder, change):
        edit_config(folder, change)
        with refuses(CheckpointError, "config.json"):
            checkpoint.load(folder)
        with refuses(CheckpointError, "config.json"):
            checkpoint.inspect(folder)

    @pytest.mark.parametrize("name", ["NoTransformer2DModel", "DDIMScheduler", "loaders"])
    def test_a_class_that_is_no_model(self, folder, name):
        edit_config(folder, lambda config: config | {"_class_name": name})
        with refuses(CheckpointError, "config.json", f"describes no {name}"):
            checkpoint.load(folder)

    def test_another_class(self, folder):
        edit_config(folder, lambda config: config | {"_class_name": "SD3Transformer2DModel"})
        with refuses(PlanError, "made for 'pixart'", "the model is 'sd3'"):
            checkpoint.load(folder)

    @pytest.mark.parametrize("version", [2, 99])
    def test_newer_schema(self, folder, version):
        edit_entry(folder, lambda entry: entry | {"schema_version": version, "new_field": 1})
        with refuses(CheckpointError, "config.json", f"schema version {version}", "upgrade"):
            checkpoint.load(folder)

    @pytest.mark.parametrize("version", ["2", 0, -1, None, True, 1.5])
    def test_impossible_schema(self, folder, version):
        edit_entry(folder, lambda entry: entry | {"schema_version": version})
        with refuses(CheckpointError, "config.json", "schema"):
            checkpoint.load(folder)

    def test_no_schema(self, folder):
        def drop(entry):
            return {k: v for k, v in entry.items() if k != "schema_version"}

        edit_entry(folder, drop)
        with refuses(CheckpointError, "config.json", "schema"):
            checkpoint.load(folder)

    def test_unknown_field(self, folder):
        edit_entry(folder, lambda entry: entry | {"group_size": 64})
        with refuses(CheckpointError, "config.json", "group_size", "unknown field"):
            checkpoint.load(folder)

    def test_unknown_field_of_the_provenance(self, folder):
        def change(entry):
            return entry | {"provenance": entry["provenance"] | {"author": "me"}}

        edit_entry(folder, change)
        with refuses(CheckpointError, "config.json", "provenance.author", "unknown field"):
            checkpoint.load(folder)

    def test_unknown_field_of_the_plan(self, folder):
        def change(entry):
            entry["plan"]["groups"][0]["zero_points"] = True
            return entry

        edit_entry(folder, change)
        with refuses(PlanError, "config.json", "zero_points", "unknown field"):
            checkpoint.load(folder)

    def test_a_plan_for_a_larger_model(self, folder):
        edit_config(folder, lambda config: config | {"num_layers": 1})
        with refuses(PlanError, "'transformer_blocks.1.", "another model"):
            checkpoint.load(folder)

    def test_a_plan_for_a_smaller_model(self, folder):
        edit_config(folder, lambda config: config | {"num_layers": 3})
        with refuses(CheckpointError, "'transformer_blocks.2."):
            checkpoint.load(folder)

    def test_a_plan_for_another_family(self, folder, quantized):
        video = json.loads((quantized("video", "w8a8") / "transformer/config.json").read_text())
        plan = video["quantization_config"]["plan"]
        edit_entry(folder, lambda entry: entry | {"plan": plan})
        with refuses(PlanError, "latte", "pixart"):
            checkpoint.load(folder)

    def test_a_plan_with_other_formats(self, folder):
        def change(entry):
            entry["plan"]["groups"][0]["weight"] = "int8"
            return entry

        edit_entry(folder, change)
        with refuses(CheckpointError, WEIGHTS, "(32, 16)", "(32, 32)"):
            checkpoint.load(folder)

    def test_of_another_method(self, folder):
        edit_entry(folder, lambda entry: {"quant_method": "bitsandbytes"})
        assert not checkpoint.is_quantized(folder)
        with refuses(CheckpointError, "config.json", "'bitsandbytes'", "viditq quantize"):
            checkpoint.load(folder)

    def test_a_float_model(self, floats):
        assert not checkpoint.is_quantized(floats["image"] / "transformer")
        with refuses(CheckpointError, "config.json", "no viditq checkpoint"):
            checkpoint.load(floats["image"] / "transformer")

    @pytest.mark.parametrize("text", ["{", "[]", "3", '{"quantization_config": 3}'])
    def test_is_quantized_takes_anything(self, folder, text):
        (folder / "config.json").write_text(text)
        assert not checkpoint.is_quantized(folder)

    def test_no_folder(self, tmp_path):
        with refuses(CheckpointError, str(tmp_path / "none")):
            checkpoint.load(tmp_path / "none")


class TestInspect:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_sizes_are_those_on_disk(self, quantized, preset):
        source = quantized("image", preset)
        summary = checkpoint.inspect(source)
        tensors = load_file(source / "transformer" / WEIGHTS)
        own = {n: t for n, t in tensors.items() if n.rpartition(".")[0] in summary.plan.layers}
        size = sum(t.numel() * t.element_size() for n, t in own.items() if not n.endswith(".bias"))
        assert summary.size_bytes == size
        bits = int(preset[1])
        weights = sum(
            (t.shape[0] * layer.in_features)
            for n, t in own.items()
            if n.endswith(".weight") and (layer := summary.layers[n.removesuffix(".weight")])
        )
        assert summary.num_weights == weights
        assert summary.float_size_bytes == 2 * weights
        assert summary.weight_bits == pytest.approx(8 * size / weights)
        # Scales are 32 bits in 32 … 128 weights, smoothing as much again; never below the codes.
        assert bits < summary.weight_bits <= bits + 2.5
        assert sum(d.size_bytes for d in summary.layers.values()) == size
        name = "tcq4" if preset == "w4a8-tcq" else f"int{bits}"
        assert {d.weight_format for d in summary.layers.values()} == {name}

    def test_a_transformers_folder_says_the_same(self, quantized):
        source = quantized("image", "w8a8")
        whole, part = checkpoint.inspect(source), checkpoint.inspect(source / "transformer")
        assert whole.name == "w8a8"
        assert part.model_copy(update={"name": "w8a8"}) == whole

    def test_provenance(self, quantized, floats):
        from viditq import __version__

        summary = checkpoint.inspect(quantized("image", "w8a8"))
        provenance = summary.provenance
        assert provenance is not None
        assert summary.recipe == "w8a8"
        assert summary.transformer == "PixArtTransformer2DModel"
        assert provenance.base_model == str(floats["image"])
        assert (provenance.num_prompts, provenance.num_steps, provenance.steps) == (2, 4, (0, 2, 3))
        assert (provenance.guidance, provenance.seed) == (4.5, 0)
        assert provenance.versions["viditq"] == __version__
        assert provenance.measured["denoiser_sqnr_db"] > 20

    def test_without_the_sidecar(self, folder):
        (folder / "viditq_layers.json").unlink()
        summary = checkpoint.inspect(folder)
        assert summary.layers == {}
        assert summary.num_layers == 20

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", "{}", '{"layers": 3}', '{"schema_version": 1, "layers": {"a": {"role": "x"}}}'],
    )
    def test_a_damaged_sidecar(self, folder, text):
        (folder / "viditq_layers.json").write_text(text)
        with refuses(CheckpointError, "viditq_layers.json"):
            checkpoint.inspect(folder)

    def test_a_newer_sidecar(self, folder):
        path = folder / "viditq_layers.json"
        path.write_text(json.dumps({"schema_version": 2, "layers": {}, "more": 1}))
        with refuses(CheckpointError, "viditq_layers.json", "schema version 2"):
            checkpoint.inspect(folder)

    def test_a_tensor_of_another_type(self, folder):
        name = "transformer_blocks.0.attn1.to_q.scale"
        edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32).double()}))
        with refuses(CheckpointError, WEIGHTS, name):
            checkpoint.inspect(folder)

    def test_a_layer_without_weight(self, folder):
        name = "transformer_blocks.0.attn1.to_q.weight"
        edit_tensors(folder, lambda tensors: tensors.pop(name))
        with refuses(CheckpointError, repr(name)):
            checkpoint.inspect(folder)


def test_nothing_is_pickled(quantized):
    files = [f for f in (quantized("image", "w4a8") / "transformer").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} == {".json", ".safetensors"}
