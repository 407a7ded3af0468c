"""Samples: upstream's own, one seed each, whatever batch they are made in."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline

import tiny
from checks import refuses
from viditq import pipelines
from viditq.errors import InputError, PipelineError

PROMPTS = ["a red star", "a small blue square moving left over green", "a circle"]
SEEDS = [3, 1, 4]
KINDS = pytest.mark.parametrize("kind", ["image", "video"])


@pytest.fixture(scope="module")
def pipe(floats):
    return cache(lambda kind: pipelines.load(floats[kind]))


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def test_float_images_are_upstreams_to_the_bit(floats, pipe):
    stock = DiffusionPipeline.from_pretrained(floats["image"])
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=4.5,
        generator=generators(),
        height=16,
        width=16,
        use_resolution_binning=False,
        clean_caption=False,
        output_type="pt",
    ).images
    ours = pipelines.generate(pipe("image"), PROMPTS, SEEDS, steps=3)
    assert torch.equal(ours.movedim(-1, -3), expected)


def test_float_videos_are_upstreams_to_the_bit(floats, pipe):
    stock = DiffusionPipeline.from_pretrained(floats["video"])
    stock.set_progress_bar_config(disable=True)
    ours = pipelines.generate(pipe("video"), PROMPTS, SEEDS, steps=3, guidance=7.0)
    for i in range(3):
        expected = stock(
            PROMPTS[i],
            num_inference_steps=3,
            guidance_scale=7.0,
            generator=generators()[i],
            height=16,
            width=16,
            video_length=2,
            clean_caption=False,
            output_type="pt",
        ).frames
        assert torch.equal(ours[i].movedim(-1, -3), expected[0].clamp(0, 1))


@KINDS
def test_shape_range_and_place(pipe, kind):
    samples = pipelines.generate(pipe(kind), PROMPTS, SEEDS, steps=2)
    assert samples.shape == {"image": (3, 16, 16, 3), "video": (3, 2, 16, 16, 3)}[kind]
    assert (samples.dtype, samples.device.type) == (torch.float32, "cpu")
    assert 0 <= samples.min() < samples.max() <= 1


@KINDS
def test_a_sample_is_its_seed_and_its_prompt(pipe, kind):
    samples = pipelines.generate(pipe(kind), PROMPTS[:1] * 3, [5, 5, 6], steps=2)
    again = pipelines.generate(pipe(kind), PROMPTS[:1] * 3, [5, 5, 6], steps=2)
    assert torch.equal(samples, again)
    torch.testing.assert_close(samples[0], samples[1], rtol=0, atol=1e-4)
    assert (samples[0] - samples[2]).abs().max() > 0.01


def first_inputs(pipeline, batch_size):
    """What the transformer sees at the first step, (B, …), one row per prompt."""
    seen = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())[0]),
        with_kwargs=True,
    )
    try:
        pipelines.generate(pipeline, PROMPTS, SEEDS, steps=1, batch_size=batch_size)
    finally:
        handle.remove()
    # Each call has the noise of its prompts twice, once for each guidance branch.
    return torch.cat([x[: len(x) // 2] for x in seen])


@KINDS
def test_noise_does_not_depend_on_the_batch(pipe, kind):
    """Bit by bit: three together and one by one."""
    alone = first_inputs(pipe(kind), 1)
    assert torch.equal(first_inputs(pipe(kind), 3), alone)
    assert torch.equal(first_inputs(pipe(kind), 2), alone)


@KINDS
def test_noise_does_not_depend_on_the_precision(pipe, kind):
    half = deepcopy(pipe(kind)).to(torch.bfloat16)
    assert torch.equal(first_inputs(half, 3), first_inputs(pipe(kind), 3).to(torch.bfloat16))


@KINDS
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_samples_do_not_depend_on_the_batch(pipe, kind, batch_size):
    """But for the order in which a matrix product sums, which no size of batch fixes."""
    together = pipelines.generate(pipe(kind), PROMPTS, SEEDS, steps=3, batch_size=batch_size)
    alone = pipelines.generate(pipe(kind), PROMPTS, SEEDS, steps=3, batch_size=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@KINDS
def test_without_guidance(pipe, kind):
    guided = pipelines.generate(pipe(kind), PROMPTS, SEEDS, steps=2)
    free = pipelines.generate(pipe(kind), PROMPTS, SEEDS, steps=2, guidance=1.0)
    assert free.shape == guided.shape
    assert not torch.equal(free, guided)


def test_the_global_generator_is_left_alone(pipe):
    state = torch.random.get_rng_state()
    pipelines.generate(pipe("image"), PROMPTS, SEEDS, steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pixart_alpha(tmp_path):
    """The older pipeline with the same transformer, saved and loaded like any other."""
    parts = tiny.pixart().components
    source = tiny.saved(PixArtAlphaPipeline(**parts), tmp_path / "alpha")
    samples = pipelines.generate(pipelines.load(source), PROMPTS, SEEDS, steps=2)
    assert samples.shape == (3, 16, 16, 3)


def test_progress_counts_calls(pipe):
    seen = []

    def track(items, description, total=None):
        seen.append((description, total))
        yield from items

    pipelines.generate(pipe("image"), PROMPTS, SEEDS, steps=1, batch_size=2, track=track)
    assert seen == [("generate", 2)]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"prompts": [], "seeds": []}, ("0 prompts",)),
        ({"prompts": ["a"], "seeds": [0, 1]}, ("1 prompts", "2 seeds")),
        ({"prompts": ["a"], "seeds": [0], "steps": 0}, ("steps", "0")),
        ({"prompts": ["a"], "seeds": [0], "batch_size": 0}, ("batch_size", "0")),
    ],
)
def test_bad_arguments(pipe, arguments, facts):
    with refuses(InputError, *facts):
        pipelines.generate(pipe("image"), **arguments)


def test_no_pipeline():
    with refuses(PipelineError, "Linear", "no transformer"):
        pipelines.generate(torch.nn.Linear(1, 1), ["a"], [0])
