"""diffusers' video pipelines the whole way: their own samples, quantized, saved, loaded, compared.

Each is upstream's class with random weights and text encoders of its own kind.
"""

from functools import cache

import diffusers
import pytest
import torch
from safetensors import safe_open

from checks import refuses
from tiny_videos import CASES
from viditq import checkpoint, pipelines
from viditq.bench import diagnose
from viditq.calibration import CalibrationSet
from viditq.errors import CalibrationError, PipelineError
from viditq.evaluation import analyze, compare
from viditq.pipelines.record import record
from viditq.report.layers import load_layers

NAMES = pytest.mark.parametrize("name", CASES)
PROMPTS = ["a red star", "a small blue square moving left over green"]
SHORT = {"preset": "w4a8-naive", "prompts": PROMPTS[:1], "steps": 4, "kept": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return cache(lambda name: CASES[name].saved(folder / name))


@pytest.fixture(scope="module")
def quantized(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    return cache(lambda name: pipelines.quantize(source(name), folder / name, **SHORT))


def stock(folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@NAMES
def test_videos_are_upstreams_to_the_bit(source, name):
    """With the same generator, told the size."""
    pipe, generator = pipelines.load(source(name)), torch.Generator().manual_seed(3)
    ours = pipelines.generate(pipe, PROMPTS[:1], [3], steps=2)
    if CASES[name].packed:
        shape = (1, *pipelines.family(pipe).latent_shape(pipe))
        noise = {"latents": torch.randn(shape, generator=generator)}
    else:
        noise = {"generator": generator}
    expected = stock(source(name))(
        PROMPTS[0],
        num_inference_steps=2,
        guidance_scale=pipelines.DEFAULT_GUIDANCE,
        output_type="pt",
        **noise,
        **CASES[name].size,
        **CASES[name].arguments,
    ).frames
    assert ours.shape == (1, *CASES[name].shape)
    assert torch.equal(ours.movedim(-1, -3), expected.clamp(0, 1))


@NAMES
def test_a_sample_is_its_seed_and_its_prompt_in_any_batch(source, name):
    pipe = pipelines.load(source(name))
    together = pipelines.generate(pipe, [*PROMPTS, PROMPTS[0]], [5, 5, 6], steps=2)
    assert torch.equal(
        together, pipelines.generate(pipe, [*PROMPTS, PROMPTS[0]], [5, 5, 6], steps=2)
    )
    alone = pipelines.generate(pipe, [*PROMPTS, PROMPTS[0]], [5, 5, 6], steps=2, batch_size=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert not torch.equal(together[0], together[1])
    assert (together[0] - together[2]).abs().max() > 0.01


@NAMES
def test_every_call_of_a_step_is_recorded(source, name, tmp_path):
    """Played back, each gives what the pipeline got."""
    pipe = pipelines.load(source(name))
    outputs = {part: [] for part in pipelines.family(pipe).transformers}
    handles = [
        model.register_forward_hook(lambda *a, kept=outputs[part]: kept.append(a[-1][0].clone()))
        for part, model in pipelines.transformers(pipe).items()
    ]
    first = record(pipe, PROMPTS, tmp_path, steps=4, kept=4)
    for handle in handles:
        handle.remove()
    calls = 2 if pipelines.family(pipe).guidance == "separate" else 1
    assert first.info.calls_per_step == calls
    for part, model in pipelines.transformers(pipe).items():
        recorded = CalibrationSet(tmp_path if part == "transformer" else tmp_path / part)
        assert len(recorded) == len(outputs[part]) == calls * 2 * len(recorded.info.steps)
        for call, expected in zip(recorded, outputs[part], strict=True):
            with torch.inference_mode():
                again = model(**{**call.arguments, "return_dict": False})[0]
            assert torch.equal(again, expected)


@NAMES
def test_quantized_and_loaded_by_viditq_and_by_diffusers(source, quantized, name):
    reference = pipelines.generate(pipelines.load(source(name)), PROMPTS, [7, 8], steps=2)
    pipe = pipelines.load(quantized(name))
    samples = pipelines.generate(pipe, PROMPTS, [7, 8], steps=2)
    assert torch.equal(samples, pipelines.generate(pipe, PROMPTS, [7, 8], steps=2))
    assert 0 < (samples - reference).abs().mean() < 0.05
    pipelines.register()
    theirs = stock(quantized(name))
    theirs.viditq_size = CASES[name].size
    assert torch.equal(pipelines.generate(theirs, PROMPTS, [7, 8], steps=2), samples)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_it_makes_the_same(quantized, name, dtype):
    drop_in, fused = (
        pipelines.generate(
            pipelines.load(quantized(name), dtype=dtype, fuse=fuse), PROMPTS[:1], [7], steps=1
        )
        for fuse in (False, True)
    )
    assert (drop_in - fused).abs().mean() < (1e-3 if dtype == torch.float32 else 0.02)


@NAMES
def test_compared_and_diagnosed(source, quantized, name, tmp_path):
    comparison = compare(
        source(name), [quantized(name)], PROMPTS, out=tmp_path / "c", num=2, steps=2
    )
    (result,) = comparison.results
    summary = checkpoint.inspect(quantized(name))
    assert result.weight_bits == summary.weight_bits
    assert (
        load_layers(comparison.folder / "layers" / f"{name}.json").keys() == summary.layers.keys()
    )
    assert 20 < result.psnr_db < 100
    counts = {layer.m for layer in diagnose(source(name), "cpu").layers}
    assert CASES[name].tokens in counts


def test_analyzed(source, tmp_path):
    """The branches of guidance come in calls of their own, so no call has two conditions."""
    found = analyze(source("wan"), tmp_path / "a", prompts=PROMPTS, num=1, steps=2)
    assert all(layer.condition is None for layer in found.layers.values())


@pytest.mark.parametrize(
    ("name", "factors", "latent"),
    [
        ("wan", (8, 4), (4, 21, 60, 104)),  # 81 × 480 × 832
        ("wan2.2-5b", (16, 4), (4, 31, 44, 80)),  # 121 × 704 × 1280
        ("cogvideox", (8, 4), (2, 4, 8, 8)),  # 5 × 64 × 64, as its configuration says
        ("cogvideox1.5", (8, 4), (2, 4, 96, 170)),  # 5 × 768 × 1360
        ("ltx", (32, 8), (21 * 16 * 22, 4)),  # 161 × 512 × 704
        ("hunyuan-video", (8, 4), (4, 33, 90, 160)),  # 129 × 720 × 1280
    ],
)
def test_the_size_unless_one_is_told(name, factors, latent):
    """With the autoencoder's factors as published."""
    pipe = CASES[name].make()
    pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal = factors
    pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio = factors
    assert pipelines.family(pipe).latent_shape(pipe) == latent


def test_of_another_size(source, tmp_path):
    pipe = pipelines.load(source("wan"))
    pipe.viditq_size = {"height": 16, "width": 32, "num_frames": 3}
    assert pipelines.generate(pipe, PROMPTS[:1], [0], steps=1).shape == (1, 3, 16, 32, 3)
    pipe.viditq_size = {"height": 16, "width": 20, "num_frames": 3}
    with refuses(PipelineError, "16 × 20", "multiples of 16"):
        pipelines.generate(pipe, PROMPTS[:1], [0], steps=1)


class TestTwoExperts:
    """Wan 2.2: the second of two transformers has the late steps."""

    def test_both_are_quantized_from_their_own_steps(self, quantized):
        first, second = (
            checkpoint.inspect(quantized("wan2.2") / part)
            for part in ("transformer", "transformer_2")
        )
        assert (first.provenance.steps, second.provenance.steps) == ((0,), (2, 3))
        assert first.provenance.base_fingerprint != second.provenance.base_fingerprint
        assert set(first.layers) == set(second.layers)
        both = checkpoint.inspect(quantized("wan2.2"))
        assert both.num_layers == 2 * first.num_layers
        assert both.size_bytes == first.size_bytes + second.size_bytes
        assert set(both.layers) == set(both.plan.layers)
        assert {name.split(".")[0] for name in both.layers} == {"transformer", "transformer_2"}

    def test_each_holds_its_own_codes(self, quantized):
        codes = []
        for part in ("transformer", "transformer_2"):
            with safe_open(quantized("wan2.2") / part / checkpoint.WEIGHTS, "pt") as file:
                codes.append(file.get_tensor("blocks.0.attn1.to_q.weight"))
        assert codes[0].dtype == codes[1].dtype == torch.uint8
        assert not torch.equal(*codes)

    def test_the_second_is_what_late_steps_use(self, source, quantized):
        """With the float first expert and the quantized second one, the first steps are float."""
        pipe, other = pipelines.load(source("wan2.2")), pipelines.load(quantized("wan2.2"))
        reference = pipelines.generate(pipe, PROMPTS[:1], [1], steps=4)
        pipe.transformer_2 = other.transformer_2
        late = pipelines.generate(pipe, PROMPTS[:1], [1], steps=4)
        both = pipelines.generate(other, PROMPTS[:1], [1], steps=4)
        assert not torch.equal(late, reference)
        assert not torch.equal(late, both)

    def test_a_trajectory_without_late_steps(self, source, tmp_path):
        with refuses(CalibrationError, "transformer_2", "more steps"):
            pipelines.quantize(source("wan2.2"), tmp_path / "q", **{**SHORT, "steps": 1})
        assert not list(tmp_path.iterdir())

    def test_interrupted_and_resumed_it_is_the_same(self, source, quantized, tmp_path):
        class Killed(BaseException):
            pass

        passes = []

        def track(items, description, total=None):
            passes.append(description)
            for item in items:
                if passes.count("quantize") == 2:
                    raise Killed
                yield item

        with pytest.raises(Killed):
            pipelines.quantize(source("wan2.2"), tmp_path / "q", **SHORT, track=track)
        out = pipelines.quantize(source("wan2.2"), tmp_path / "q", **SHORT)
        assert [entry.name for entry in tmp_path.iterdir()] == ["q"]
        for part in ("transformer", "transformer_2"):
            file = f"{part}/{checkpoint.WEIGHTS}"
            assert (out / file).read_bytes() == (quantized("wan2.2") / file).read_bytes()

    def test_a_calibration_may_be_kept(self, source, tmp_path):
        kept = {**SHORT, "calibration": tmp_path / "c"}
        a, b = (pipelines.quantize(source("wan2.2"), tmp_path / name, **kept) for name in "ab")
        assert (tmp_path / "c" / "transformer_2" / "stats").is_dir()
        file = f"transformer_2/{checkpoint.WEIGHTS}"
        assert (a / file).read_bytes() == (b / file).read_bytes()
