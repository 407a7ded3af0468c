"""The whole way: any pipeline of a supported family in, a complete pipeline or nothing out."""

import gc
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import tiny
from checks import refuses
from viditq import checkpoint, pipelines
from viditq.errors import CalibrationError, InputError, PipelineError, PlanError

PROMPTS = ["a red star", "a small blue square moving left over green"]
# The shortest calibration there is: one step of one trajectory per prompt.
SHORT = {"prompts": PROMPTS, "steps": 2, "kept": 1, "preset": "w8a8-naive"}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def only(folder: Path, *names: str) -> bool:
    """Whether ``folder`` holds these entries and nothing else, hidden or not."""
    return {entry.name for entry in folder.iterdir()} == set(names)


class TestOutput:
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_everything_but_the_transformer_is_as_it_was(self, floats, quantized, kind):
        before, after = files(floats[kind]), files(quantized(kind, "w8a8"))
        others = {name for name in before if not name.startswith("transformer/")}
        assert others == {name for name in after if not name.startswith("transformer/")}
        assert all(after[name] == before[name] for name in others)
        assert {n for n in after if n.startswith("transformer/")} == {
            "transformer/config.json",
            "transformer/viditq_layers.json",
            WEIGHTS,
        }

    def test_the_sidecar_has_every_layer(self, quantized):
        source = quantized("video", "w4a8")
        sidecar = json.loads((source / "transformer/viditq_layers.json").read_text())
        assert sidecar["schema_version"] == 1
        plan = checkpoint.inspect(source).plan
        assert set(sidecar["layers"]) == set(plan.layers)
        for layer in sidecar["layers"].values():
            assert [s["step"] for s in layer["steps"]] == [0, 2, 3]
            assert layer["sqnr_db"] > 5

    def test_the_source_is_left_alone(self, floats, tmp_path):
        before = files(floats["image"])
        pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        assert files(floats["image"]) == before

    def test_nothing_else_is_left_behind(self, floats, tmp_path):
        out = pipelines.quantize(floats["image"], tmp_path / "new" / "q", **SHORT)
        assert out == tmp_path / "new" / "q"
        assert only(tmp_path, "new")
        assert only(tmp_path / "new", "q")

    def test_a_calibration_folder_is_kept_and_found_again(self, floats, tmp_path):
        kept = {**SHORT, "calibration": tmp_path / "c"}
        first = pipelines.quantize(floats["image"], tmp_path / "a", **kept)
        shown = []

        def track(items, description, total=None):
            shown.append((description, total))
            yield from items

        second = pipelines.quantize(floats["image"], tmp_path / "b", **kept, track=track)
        assert only(tmp_path, "a", "b", "c")
        assert ("record", 0) in shown
        assert not any(description.startswith("observe") for description, _ in shown)
        assert files(first) == files(second)

    def test_measuring_shows_progress(self, floats, tmp_path):
        """Of the float model and of the quantized one, with as many calls as were announced."""
        shown = []

        def track(items, description, total=None):
            items = list(items)
            shown.append((description, total, len(items)))
            return iter(items)

        pipelines.quantize(floats["image"], tmp_path / "q", **SHORT, track=track)
        measured = [entry for entry in shown if entry[0] == "measure"]
        assert len(measured) == 2
        assert all(0 < calls == total for _, total, calls in measured)

    def test_the_same_call_makes_the_same_files(self, floats, tmp_path):
        a, b = (pipelines.quantize(floats["image"], tmp_path / n, **SHORT) for n in "ab")
        assert files(a) == files(b)

    def test_a_relative_path(self, floats, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        pipelines.quantize(floats["image"], "q", **SHORT)
        assert only(tmp_path, "q")

    def test_the_current_directory_if_it_is_empty(self, floats, tmp_path, monkeypatch):
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        pipelines.quantize(floats["image"], ".", **SHORT)
        assert checkpoint.inspect(here).num_layers == 20

    def test_without_prompts_some_come_along(self, floats, tmp_path):
        arguments = {**SHORT, "prompts": None, "steps": 1}
        out = pipelines.quantize(floats["image"], tmp_path / "q", **arguments)
        provenance = checkpoint.inspect(out).provenance
        assert provenance.num_prompts == 16
        prompts = pipelines.calibration_prompts(floats["image"])
        assert len(set(prompts)) == len(prompts) == 16


class TestPipelinesMadeElsewhere:
    """Other widths, depths and caption sizes; the whole method, then a batch of three."""

    @pytest.mark.parametrize(
        ("make", "sizes"),
        [
            # 3 · 12 = 36: rotation blocks of 4, four int6 codes in three bytes left over in ffn.
            (tiny.pixart, {"heads": 3, "head_dim": 12, "layers": 1, "caption": 20}),
            (tiny.latte, {"heads": 3, "head_dim": 12, "layers": 1, "caption": 20}),
            # Captions wider than the model; three blocks.
            (tiny.pixart, {"heads": 4, "head_dim": 8, "layers": 3, "caption": 48}),
        ],
        ids=["36", "36 video", "32 of 48"],
    )
    @pytest.mark.parametrize("preset", ["w4a8", "w6a6", "w4a8-tcq"])
    def test_of_odd_sizes(self, tmp_path, make, sizes, preset):
        source = tiny.saved(make(**sizes), tmp_path / "float")
        arguments = {**SHORT, "preset": preset, "prompts": PROMPTS[:1]}
        out = pipelines.quantize(source, tmp_path / preset, **arguments)
        captions, seeds = [*PROMPTS, "a circle"], [7, 8, 9]
        reference, samples = (
            pipelines.generate(pipelines.load(f), captions, seeds, steps=2, batch_size=3)
            for f in (source, out)
        )
        assert samples.shape == reference.shape
        assert 0 < (samples - reference).abs().mean() < 0.05
        bits = checkpoint.inspect(out).weight_bits
        assert int(preset[1]) < bits < int(preset[1]) + 3

    def test_with_half_precision_weights(self, tmp_path):
        pipe = tiny.pixart(layers=1)
        pipe.transformer.half()
        pipe.text_encoder.half()
        source = tiny.saved(pipe, tmp_path / "half")
        out = pipelines.quantize(source, tmp_path / "q", **SHORT)
        samples = pipelines.generate(pipelines.load(out), PROMPTS, [0, 1], steps=2)
        assert torch.isfinite(samples).all()

    def test_pixart_alpha(self, tmp_path):
        parts = tiny.pixart(layers=1).components
        source = tiny.saved(PixArtAlphaPipeline(**parts), tmp_path / "alpha")
        out = pipelines.quantize(source, tmp_path / "q", **SHORT)
        assert type(pipelines.load(out)).__name__ == "PixArtAlphaPipeline"
        assert pipelines.generate(pipelines.load(out), PROMPTS, [0, 1], steps=2).shape[0] == 2

    def test_with_extra_files_and_optional_parts(self, floats, tmp_path):
        source = Path(shutil.copytree(floats["image"], tmp_path / "float"))
        (source / "README.md").write_text("about")
        index = json.loads((source / "model_index.json").read_text())
        (source / "model_index.json").write_text(
            json.dumps(index | {"feature_extractor": [None] * 2})
        )
        out = pipelines.quantize(source, tmp_path / "q", **SHORT)
        assert pipelines.generate(pipelines.load(out), PROMPTS, [0, 1], steps=1).shape[0] == 2


class TestRefusals:
    """One sentence, and nothing written: neither the output nor anything beside it."""

    def refused(self, tmp_path, kind, *facts, source, before=(), **changes):
        with refuses(kind, *facts):
            pipelines.quantize(source, tmp_path / "q", **{**SHORT, **changes})
        assert only(tmp_path, *before)

    def test_a_quantized_source(self, quantized, tmp_path):
        source = quantized("image", "w8a8")
        self.refused(tmp_path, PipelineError, str(source), "already", source=source)

    def test_no_such_pipeline(self, tmp_path):
        self.refused(tmp_path, PipelineError, "'nowhere'", source="nowhere")

    def test_no_such_preset(self, floats, tmp_path):
        self.refused(tmp_path, PlanError, "'w3a3'", "w4a8", source=floats["image"], preset="w3a3")

    def test_no_prompts(self, floats, tmp_path):
        self.refused(tmp_path, InputError, "prompt", source=floats["image"], prompts=[])

    @pytest.mark.parametrize("change", [{"steps": 0}, {"kept": 0}])
    def test_no_steps(self, floats, tmp_path, change):
        self.refused(tmp_path, InputError, "step", source=floats["image"], **change)

    def test_no_such_device(self, floats, tmp_path):
        self.refused(tmp_path, InputError, "'gpu'", source=floats["image"], device="gpu")

    # One that is quantized, one that is not: with either, no sample is sound.
    @pytest.mark.parametrize("name", ["transformer_blocks.1.ff.net.2.weight", "proj_out.bias"])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_weights_that_are_not_finite(self, floats, tmp_path_factory, tmp_path, name, bad):
        source = tmp_path_factory.mktemp("bad") / "float"
        shutil.copytree(floats["image"], source)
        tensors = load_file(source / WEIGHTS)
        tensors[name].view(-1)[3] = bad
        save_file(tensors, source / WEIGHTS)
        self.refused(tmp_path, PipelineError, name, "NaN or inf", source=source)

    def test_a_file_in_the_place_of_the_output(self, floats, tmp_path):
        (tmp_path / "q").write_text("mine")
        self.refused(tmp_path, InputError, "q is a file", source=floats["image"], before=["q"])
        assert (tmp_path / "q").read_text() == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_an_output_with_other_files(self, floats, tmp_path, overwrite):
        (tmp_path / "q").mkdir()
        (tmp_path / "q" / "photo.jpg").write_text("mine")
        self.refused(
            tmp_path,
            InputError,
            "holds other files",
            source=floats["image"],
            before=["q"],
            overwrite=overwrite,
        )
        assert only(tmp_path / "q", "photo.jpg")

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_float_pipeline_in_the_place_of_the_output(self, floats, tmp_path, overwrite):
        """Its author's only copy, perhaps the source itself: never an earlier output of ours."""
        source = tmp_path / "q"
        shutil.copytree(floats["image"], source)
        before = files(source)
        self.refused(
            tmp_path,
            InputError,
            "holds other files",
            source=source,
            before=["q"],
            overwrite=overwrite,
        )
        assert files(source) == before

    def test_an_earlier_output(self, floats, tmp_path):
        out = pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        before = files(out)
        self.refused(
            tmp_path,
            InputError,
            "earlier output",
            "--overwrite",
            source=floats["image"],
            before=["q"],
        )
        assert files(out) == before
        pipelines.quantize(
            floats["image"], out, **{**SHORT, "preset": "w4a8-naive"}, overwrite=True
        )
        assert checkpoint.inspect(out).recipe == "w4a8-naive"
        assert only(tmp_path, "q")

    def test_a_calibration_of_another_pipeline(self, floats, tmp_path):
        kept = {**SHORT, "calibration": tmp_path / "c"}
        pipelines.quantize(floats["image"], tmp_path / "a", **kept)
        before = files(tmp_path / "c")
        with refuses(CalibrationError, str(tmp_path / "c"), "other settings"):
            pipelines.quantize(floats["video"], tmp_path / "b", **kept)
        with refuses(CalibrationError, str(tmp_path / "c"), "other settings"):
            pipelines.quantize(floats["image"], tmp_path / "b", **{**kept, "seed": 1})
        shutil.rmtree(tmp_path / "c" / "recorded")
        with refuses(CalibrationError, str(tmp_path / "c"), "another model or calibration set"):
            pipelines.quantize(floats["video"], tmp_path / "b", **kept)
        assert only(tmp_path, "a", "c")
        stats = {name: content for name, content in before.items() if name.startswith("stats/")}
        assert stats.items() <= files(tmp_path / "c").items()


class TestLarge:
    def test_a_large_transformer_is_calibrated_in_16_bits_on_a_gpu(self, floats, monkeypatch):
        from viditq.pipelines.quantize import calibration_dtype

        module, folder = sys.modules["viditq.pipelines.quantize"], floats["image"]
        # A second transformer that the pipeline does not have counts nothing.
        parts = ("transformer", "transformer_2")
        numbers = sum(p.numel() for p in pipelines.load(folder).transformer.parameters())
        for bound, expected in ((numbers, torch.float32), (numbers - 1, torch.bfloat16)):
            monkeypatch.setattr(module, "FP32_NUMBERS", bound)
            assert calibration_dtype(folder, parts, "cuda:0") is expected
            assert calibration_dtype(folder, parts, "cpu") is torch.float32

    def test_what_encodes_captions_is_gone_once_calls_are_recorded(self, floats, tmp_path):
        """A text encoder may be as large as the transformer."""
        alive = []

        def track(items, description, total=None):
            if description == "observe":
                alive.extend(o for o in gc.get_objects() if type(o).__name__ == "T5EncoderModel")
            yield from items

        before = sum(type(o).__name__ == "T5EncoderModel" for o in gc.get_objects())
        pipelines.quantize(floats["image"], tmp_path / "q", **SHORT, track=track)
        assert len(alive) <= before


class Killed(BaseException):
    """As Ctrl-C and SIGTERM: nothing may catch it."""


class TestInterruption:
    @pytest.mark.parametrize("stage", ["record", "observe", "plan", "quantize"])
    def test_killed_and_called_again_it_makes_the_same(self, floats, tmp_path, stage):
        arguments = {**SHORT, "preset": "w8a8"}
        whole = pipelines.quantize(floats["image"], tmp_path / "whole", **arguments)

        def killer(items, description, total=None):
            for number, item in enumerate(items):
                if description == stage and number == 1:
                    raise Killed
                yield item

        with pytest.raises(Killed):
            pipelines.quantize(floats["image"], tmp_path / "q", **arguments, track=killer)
        assert only(tmp_path, "whole", "q.calibration")
        again = pipelines.quantize(floats["image"], tmp_path / "q", **arguments)
        assert files(again) == files(whole)
        assert only(tmp_path, "whole", "q")

    def test_what_was_left_with_other_settings_is_replaced(self, floats, tmp_path):
        def killer(items, description, total=None):
            if description == "plan":
                raise Killed
            yield from items

        with pytest.raises(Killed):
            pipelines.quantize(floats["image"], tmp_path / "q", **SHORT, seed=5, track=killer)
        out = pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        assert only(tmp_path, "q")
        plain = pipelines.quantize(floats["image"], tmp_path / "plain", **SHORT)
        assert files(out) == files(plain)

    def test_killed_while_writing(self, floats, tmp_path, monkeypatch):
        def save(*arguments, **more):
            raise Killed

        monkeypatch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        assert only(tmp_path, "q.calibration")

    def test_killed_for_good(self, floats, tmp_path):
        """SIGKILL in the middle of recording: no clean-up runs, and the next call goes on."""
        code = (
            "import os, signal, sys\n"
            "from viditq import pipelines\n"
            "def track(items, description, total=None):\n"
            "    for number, item in enumerate(items):\n"
            "        if description == 'record' and number == 1:\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "        yield item\n"
            f"pipelines.quantize({str(floats['image'])!r}, {str(tmp_path / 'q')!r},\n"
            f"    track=track, **{SHORT!r})\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == -9, run.stderr
        assert only(tmp_path, "q.calibration")
        first = tmp_path / "q.calibration" / "recorded" / "prompt-00000"
        assert first.is_dir()
        shown = []

        def track(items, description, total=None):
            shown.append((description, total))
            yield from items

        pipelines.quantize(floats["image"], tmp_path / "q", **SHORT, track=track)
        assert ("record", 1) in shown
        assert only(tmp_path, "q")


class TestFullDisk:
    # While recording, while observing, while writing weights of the output.
    @pytest.mark.parametrize("limit", [2_000, 6_000, 100_000])
    def test_says_so_and_leaves_no_output(self, floats, tmp_path, limit):
        """No file may grow beyond the limit: the system's own error, as on a full disk."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises((OSError, SafetensorError)) as caught:
                pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "File too large" in str(caught.value)
        assert not (tmp_path / "q").exists()
        assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
        pipelines.quantize(floats["image"], tmp_path / "q", **SHORT)
        assert only(tmp_path, "q")
