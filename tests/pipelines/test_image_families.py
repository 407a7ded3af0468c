"""The way of every pipeline of images, from float weights to a comparison."""

from functools import cache

import pytest
import torch
from diffusers.quantizers import auto

import tiny_images
from checks import refuses
from viditq import checkpoint, pipelines
from viditq.bench import diagnose
from viditq.calibration import CalibrationSet
from viditq.errors import PipelineError
from viditq.evaluation import analyze, compare
from viditq.evaluation.metrics import PSNR_CEILING_DB
from viditq.nn import QuantLinear
from viditq.pipelines.families import family

PROMPTS = ["a red star", "a small blue square moving left over green", "a circle"]
SEEDS = [3, 1, 4]
STEPS = 3
GUIDANCE = 3.5
NAMES = pytest.mark.parametrize("name", tiny_images.PIPELINES)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """Directory of a float pipeline, by name."""
    folder = tmp_path_factory.mktemp("float")
    return cache(lambda name: tiny_images.saved(name, folder / name))


@pytest.fixture(scope="module")
def quantized(floats, tmp_path_factory):
    """Directories of the quantized pipeline and of its calibration, by name."""

    def quantize(name):
        folder = tmp_path_factory.mktemp("quantized")
        out = pipelines.quantize(
            floats(name),
            folder / "w4a8",
            preset="w4a8",
            prompts=PROMPTS[:2],
            steps=STEPS,
            kept=2,
            guidance=GUIDANCE,
            calibration=folder / "calibration",
        )
        return out, folder / "calibration"

    return cache(quantize)


def generate(pipe, prompts=PROMPTS, seeds=SEEDS, **changes):
    settings = {"steps": STEPS, "guidance": GUIDANCE, **changes}
    return pipelines.generate(pipe, prompts, seeds, **settings)


@NAMES
def test_float_samples_are_upstreams_to_the_bit(floats, name):
    """With its own defaults, and the same noise."""
    stock = tiny_images.stock(name, floats(name))
    ours = generate(pipelines.load(floats(name)), PROMPTS[:1], SEEDS[:1])
    stock.viditq_size = tiny_images.size(name)
    noise = torch.randn(
        family(stock).latent_shape(stock), generator=torch.Generator().manual_seed(SEEDS[0])
    )
    expected = stock(
        prompt=PROMPTS[0],
        num_inference_steps=STEPS,
        latents=noise[None],
        output_type="pt",
        **tiny_images.call_arguments(name, GUIDANCE),
    ).images
    assert torch.equal(ours.movedim(-1, -3), expected)


def test_size_by_itself_and_one_that_is_none(floats):
    pipe = pipelines.load(floats("flux"))
    assert generate(pipe, PROMPTS[:1], [0]).shape == (1, 24, 16, 3)
    pipe.viditq_size = {"height": 8}
    assert family(pipe).latent_shape(pipe) == (2 * 64, 8)
    pipe.viditq_size = {"height": 10}
    with refuses(PipelineError, "FluxPipeline", "10 × 256", "multiples of 4"):
        generate(pipe, PROMPTS[:1], [0])


@NAMES
def test_a_sample_is_its_seed_and_its_prompt(floats, name):
    pipe = pipelines.load(floats(name))
    samples = generate(pipe, PROMPTS[:1] * 3, [5, 5, 6])
    assert torch.equal(samples, generate(pipe, PROMPTS[:1] * 3, [5, 5, 6]))
    torch.testing.assert_close(samples[0], samples[1], rtol=0, atol=1e-4)
    assert (samples[0] - samples[2]).abs().max() > 0.01


@NAMES
def test_samples_do_not_depend_on_the_batch(floats, name):
    pipe = pipelines.load(floats(name))
    together, alone = (generate(pipe, batch_size=size) for size in (3, 1))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@NAMES
def test_the_prompt_and_the_guidance_matter(floats, name):
    pipe = pipelines.load(floats(name))
    one = generate(pipe, PROMPTS[:1], [0])
    assert not torch.equal(one, generate(pipe, PROMPTS[1:2], [0]))
    unguided = generate(pipe, PROMPTS[:1], [0], guidance=1.0)
    assert torch.equal(one, unguided) == (name in tiny_images.WITHOUT_GUIDANCE)


@NAMES
def test_every_step_is_recorded(quantized, name):
    _, calibration = quantized(name)
    recorded = CalibrationSet(calibration / "recorded")
    assert recorded.info.steps == (0, STEPS - 1)
    calls, per_step = list(recorded), 2 if name == "qwen-image" else 1
    expected = [(p, s) for p in (0, 1) for s in (0, 2) for _ in range(per_step)]
    assert [(call.prompt, call.step) for call in calls] == expected
    first, last = (
        [call.arguments for call in calls if (call.prompt, call.step) == (0, step)]
        for step in recorded.info.steps
    )
    [early], [late] = ({float(each["timestep"][0]) for each in step} for step in (first, last))
    assert early > late
    if per_step == 2:  # with the prompt and without
        with_prompt, without = (each["encoder_hidden_states"] for each in first)
        assert with_prompt.shape != without.shape


@NAMES
def test_quantized(floats, quantized, name):
    out, _ = quantized(name)
    pipe = pipelines.load(out)
    assert type(pipe).__name__ == type(pipelines.load(floats(name))).__name__
    adapter = family(pipe).adapter
    layers = adapter.layers(pipe.transformer)
    assert layers and all(
        isinstance(pipe.transformer.get_submodule(layer), QuantLinear) for layer in layers
    )
    assert checkpoint.inspect(out).weight_bits < 8
    reference, samples = generate(pipelines.load(floats(name))), generate(pipe)
    assert samples.shape == reference.shape
    assert torch.isfinite(samples).all()
    assert 0 < (samples - reference).abs().mean() < 0.05
    together, alone = samples, generate(pipe, batch_size=1)
    # A rounding that falls the other way in another batch is a step of a code, not of a bit.
    assert (together - alone).abs().mean() < (samples - reference).abs().mean()


@NAMES
def test_fused(quantized, name):
    out, _ = quantized(name)
    samples, fused = (
        generate(pipelines.load(out, fuse=fuse), PROMPTS[:2], SEEDS[:2]) for fuse in (False, True)
    )
    assert (samples - fused).abs().mean() < 2e-3


@NAMES
def test_diffusers_loads_it(quantized, monkeypatch, name):
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.setitem(mapping, "viditq", None)
    pipelines.register()
    out, _ = quantized(name)
    for dtype in (torch.float32, torch.bfloat16):
        stock = tiny_images.stock(name, out, dtype=dtype)
        stock.viditq_size = tiny_images.size(name)
        ours = generate(pipelines.load(out, dtype=dtype), PROMPTS[:1], [0])
        assert torch.equal(generate(stock, PROMPTS[:1], [0]), ours)


@NAMES
def test_compare(floats, quantized, tmp_path, name):
    out, _ = quantized(name)
    comparison = compare(
        floats(name), [out], PROMPTS, out=tmp_path / "c", num=2, steps=2, batch_size=2
    )
    [result] = comparison.results
    assert comparison.kind == "image"
    assert [row.prompt for row in result.samples] == PROMPTS[:2]
    assert 15 < result.psnr_db < PSNR_CEILING_DB


@pytest.mark.parametrize(("name", "batched"), tiny_images.BATCHED_BRANCHES.items())
def test_analyze(floats, tmp_path, name, batched):
    analysis = analyze(floats(name), tmp_path / "a", prompts=PROMPTS, num=1, steps=2)
    assert {role.condition is not None for role in analysis.roles.values()} == {batched}


@pytest.mark.parametrize("name", tiny_images.SHAPES)
def test_doctor(floats, name):
    found = {(v.m, v.n, v.k): v.layers for v in diagnose(floats(name), "cpu").layers}
    assert found == tiny_images.SHAPES[name]
