"""Open-Sora 1.2 samples as its authors' code did, and goes the whole way like any other family."""

import pytest
import torch

import tiny
import upstream
from viditq import checkpoint, pipelines
from viditq.evaluation import compare
from viditq.nn import QuantLinear
from viditq.pipelines.opensora12 import OpenSora12Pipeline, flow_times

PROMPTS = ["a red star", "a small blue square moving left over green"]
SAMPLES = {"prompts": PROMPTS, "seeds": [3, 1], "steps": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.saved(tiny.opensora12(), tmp_path_factory.mktemp("opensora12") / "float")


@pytest.fixture(scope="module")
def quantized(source):
    return pipelines.quantize(
        source, source.with_name("w8a8"), preset="w8a8", prompts=PROMPTS, steps=3, kept=2
    )


@pytest.fixture(scope="module")
def pipe(source):
    return pipelines.load(source)


def test_samples_are_upstreams(monkeypatch):
    recorded = upstream.recorded("1.2")
    pipe = tiny.opensora12()
    pipe.register_modules(transformer=upstream.stdit3())
    pipe.set_progress_bar_config(disable=True)
    captions = recorded["call.y"].squeeze(1), recorded["call.mask"]
    monkeypatch.setattr(pipe, "encode_prompt", lambda prompts: captions)
    latents = pipe(
        ["one", "two"],
        height=40,
        width=64,
        num_frames=17,
        fps=24,
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=recorded["sample.latents"],
        output_type="latent",
    ).frames
    upstream.assert_same(latents, recorded["sample.result"])


def test_times_are_upstreams():
    expected = upstream.recorded("1.2")["sample.timesteps"]
    times = 1000 * torch.tensor(flow_times(4, 17, 40, 64))
    torch.testing.assert_close(times, expected, rtol=1e-6, atol=0)


def test_times_of_a_picture_of_512_are_even():
    assert flow_times(4, 1, 512, 512) == [1.0, 0.75, 0.5, 0.25]


def test_what_is_said_of_the_looks(pipe, monkeypatch):
    said = []
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda texts: said.append(texts) or encode(texts))
    settings = {"num_inference_steps": 1, "output_type": "latent"}
    pipe("a star", **settings)
    pipe(["a star"], aesthetic_score=None, **settings)
    assert said == [["a star aesthetic score: 6.5."], ["a star"]]


def test_any_size_and_length(pipe):
    settings = {"num_inference_steps": 1, "output_type": "pt", "height": 24, "width": 16}
    for frames in (1, 4, 18):
        video = pipe("a star", num_frames=frames, **settings).frames
        assert video.shape == (1, frames, 3, 24, 16)


def test_samples_do_not_depend_on_the_batch(pipe):
    together = pipelines.generate(pipe, **SAMPLES)
    alone = pipelines.generate(pipe, **SAMPLES, batch_size=1)
    assert together.shape == (2, 5, 16, 20, 3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.std() > 0.01


def test_offloaded_module_by_module(source, pipe):
    ours = tiny.offloaded_(pipelines.load(source))
    assert ours.transformer.null_caption.is_meta
    assert torch.equal(pipelines.generate(ours, **SAMPLES), pipelines.generate(pipe, **SAMPLES))


def test_without_guidance(pipe):
    assert pipelines.generate(pipe, **SAMPLES, guidance=1.0).shape == (2, 5, 16, 20, 3)


def test_quantized(pipe, quantized):
    summary = checkpoint.inspect(quantized)
    assert summary.transformer == "STDiT3Transformer3DModel"
    assert summary.num_layers == 2 * 2 * 7
    assert summary.provenance.measured["denoiser_sqnr_db"] > 25
    ours = pipelines.load(quantized)
    assert type(ours) is OpenSora12Pipeline
    assert sum(isinstance(m, QuantLinear) for m in ours.transformer.modules()) == 2 * 2 * 7
    a, b = pipelines.generate(ours, **SAMPLES), pipelines.generate(pipe, **SAMPLES)
    assert 0 < (a - b).abs().mean() < 0.05


def test_saved_again_it_is_the_same(quantized, tmp_path):
    ours = pipelines.load(quantized)
    ours.save_pretrained(tmp_path / "again")
    again = pipelines.load(tmp_path / "again")
    assert torch.equal(pipelines.generate(again, **SAMPLES), pipelines.generate(ours, **SAMPLES))


def test_compare(source, quantized, tmp_path):
    comparison = compare(
        source, [quantized], PROMPTS, out=tmp_path / "out", num=2, steps=2, batch_size=2
    )
    [result] = comparison.results
    assert comparison.kind == "video"
    assert result.psnr_db > 20
