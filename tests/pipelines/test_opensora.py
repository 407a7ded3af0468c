"""Open-Sora 1.0 samples as its authors' code did, and goes the whole way like any other family."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.quantizers import auto
from diffusers.schedulers import scheduling_ddpm

import tiny
import upstream
from checks import refuses
from viditq import checkpoint, pipelines
from viditq.errors import CheckpointError, InputError
from viditq.evaluation import compare
from viditq.nn import QuantLinear
from viditq.pipelines.opensora import OpenSoraPipeline
from viditq.pipelines.video import iddpm

PROMPTS = ["a red star", "A small blue square moving left over green "]
SAMPLES = {"prompts": PROMPTS, "seeds": [3, 1], "steps": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.saved(tiny.opensora(), tmp_path_factory.mktemp("opensora") / "float")


@pytest.fixture(scope="module")
def quantized(source):
    """Calibrated on two captions of different length, at two of three steps."""
    return pipelines.quantize(
        source, source.with_name("w8a8"), preset="w8a8", prompts=PROMPTS, steps=3, kept=2
    )


@pytest.fixture(scope="module")
def pipe(source):
    return pipelines.load(source)


def seen_by_transformer(pipe, **settings):
    """Arguments of every call of the transformer while ``pipe`` makes its samples."""
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append({"hidden_states": args[0], **kwargs}),
        with_kwargs=True,
    )
    try:
        pipelines.generate(pipe, **{**SAMPLES, **settings})
    finally:
        handle.remove()
    return calls


def test_samples_are_upstreams(monkeypatch):
    recorded = upstream.recorded()
    pipe = tiny.opensora()
    pipe.register_modules(transformer=upstream.stdit())
    pipe.set_progress_bar_config(disable=True)
    captions = recorded["call.y"].squeeze(1), recorded["call.mask"]
    monkeypatch.setattr(pipe, "encode_prompt", lambda prompts: captions)
    noise = iter(recorded["sample.noise"])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noise))
    latents = pipe(
        ["one", "two"],
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=recorded["sample.latents"],
        output_type="latent",
    ).frames
    expected = recorded["sample.result"]
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_what_the_transformer_is_shown(pipe):
    [first, *_] = seen_by_transformer(pipe)
    captions, mask = first["encoder_hidden_states"], first["encoder_attention_mask"]
    assert captions.shape == (4, 12, 16)
    assert mask.sum(1).tolist() == [3, 8, 3, 8]  # words of each prompt, in both branches
    empty = pipe.transformer.null_caption
    assert torch.equal(captions[:2], empty.expand(2, -1, -1))
    assert not torch.equal(captions[2], captions[3])
    assert first["timestep"].tolist() == [999] * 4
    assert torch.equal(first["hidden_states"][:2], first["hidden_states"][2:])


def test_case_and_spaces_of_a_prompt_do_not_matter(pipe):
    shouted = pipelines.generate(pipe, ["  A RED Star"], [3], steps=2)
    assert torch.equal(shouted, pipelines.generate(pipe, ["a red star"], [3], steps=2))


def test_without_guidance_there_is_one_branch(pipe):
    [first, *_] = seen_by_transformer(pipe, guidance=1.0)
    assert first["hidden_states"].shape[0] == 2


def test_samples_do_not_depend_on_the_batch(pipe):
    together = pipelines.generate(pipe, **SAMPLES)
    alone = pipelines.generate(pipe, **SAMPLES, batch_size=1)
    assert together.shape == (2, 2, 16, 16, 3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.std() > 0.01


def test_guidance_acts_on_three_of_four_channels(source):
    pipe = pipelines.load(source)
    # The last step of IDDPM adds no noise: of one step, the channels are those of the prediction.
    settings = {"num_inference_steps": 1, "output_type": "latent"}

    def latents(guidance, channels=3):
        pipe.guided_channels = channels
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPTS, guidance_scale=guidance, generator=generator, **settings).frames

    differs = (latents(2.0) != latents(7.0)).flatten(2).any(2)
    assert differs.tolist() == [[True, True, True, False]] * 2
    assert (latents(2.0, 4) != latents(7.0, 4)).flatten(2).any(2).all()


def test_a_scheduler_without_learned_variance(source):
    pipe = pipelines.load(source)
    stochastic = pipelines.generate(pipe, **SAMPLES)
    for other in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = other.from_config(pipe.scheduler.config, variance_type=None)
        assert not torch.equal(pipelines.generate(pipe, **SAMPLES), stochastic)
    pipe.scheduler = DDIMScheduler.from_config(iddpm().config)
    pipelines.generate(pipe, **SAMPLES)


def test_images_come_out_as_asked(pipe):
    settings = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0)}
    [[first, second]] = pipe("a red star", **settings).frames
    assert first.size == second.size == (16, 16)
    assert pipe("a red star", **settings, output_type="np").frames.shape == (1, 2, 16, 16, 3)
    [tensor] = pipe("a red star", **settings, output_type="pt", return_dict=False)
    assert tensor.shape == (1, 2, 3, 16, 16)


@pytest.mark.parametrize("stored", ["float", "w8a8"])
def test_offloaded_module_by_module(source, quantized, stored):
    """Tensors have values only while their module is called, the empty caption too."""
    folder = source if stored == "float" else quantized
    expected = pipelines.generate(pipelines.load(folder), **SAMPLES)
    pipe = tiny.offloaded_(pipelines.load(folder))
    assert pipe.transformer.null_caption.is_meta
    assert torch.equal(pipelines.generate(pipe, **SAMPLES), expected)
    assert pipe.transformer.null_caption.is_meta


@pytest.mark.parametrize("prompt", [[], [3], 3])
def test_no_prompt(pipe, prompt):
    with refuses(InputError, "prompt", repr(prompt)):
        pipe([prompt] if prompt == 3 else prompt)


class TestQuantized:
    def test_layers(self, quantized):
        summary = checkpoint.inspect(quantized)
        assert summary.transformer == "STDiTTransformer3DModel"
        assert summary.num_layers == 2 * 9
        assert summary.provenance.measured["denoiser_sqnr_db"] > 25
        roles = {layer.role for layer in summary.layers.values()}
        assert {"temporal_attn.qkv", "self_attn.qkv", "cross_attn.kv", "ffn.down"} <= roles

    def test_loaded_it_is_quantized_and_close_to_float(self, pipe, quantized):
        ours = pipelines.load(quantized)
        assert sum(isinstance(m, QuantLinear) for m in ours.transformer.modules()) == 2 * 9
        assert type(ours) is OpenSoraPipeline
        a, b = pipelines.generate(ours, **SAMPLES), pipelines.generate(pipe, **SAMPLES)
        assert 0 < (a - b).abs().mean() < 0.05

    def test_saved_again_it_is_the_same(self, quantized, tmp_path):
        ours = pipelines.load(quantized)
        ours.save_pretrained(tmp_path / "again")
        again = pipelines.load(tmp_path / "again")
        samples = pipelines.generate(again, **SAMPLES)
        assert torch.equal(samples, pipelines.generate(ours, **SAMPLES))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_diffusers_own_loader(self, quantized, monkeypatch, dtype):
        for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
            monkeypatch.setitem(mapping, "viditq", None)
        pipelines.register()
        theirs = OpenSoraPipeline.from_pretrained(quantized, dtype=dtype)
        theirs.set_progress_bar_config(disable=True)
        samples = pipelines.generate(theirs, **SAMPLES)
        ours = pipelines.load(quantized, dtype=dtype)
        assert torch.equal(samples, pipelines.generate(ours, **SAMPLES))

    def test_a_missing_tensor_is_named(self, quantized, tmp_path):
        broken = shutil.copytree(quantized, tmp_path / "broken")
        config = broken / "transformer" / "config.json"
        text = config.read_text()
        config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
        assert config.read_text() != text
        with refuses(CheckpointError, "transformer_blocks.2."):
            pipelines.load(broken)

    def test_compare(self, source, quantized, tmp_path):
        comparison = compare(
            source, [quantized], PROMPTS, out=tmp_path / "out", num=2, steps=2, batch_size=2
        )
        [result] = comparison.results
        assert comparison.kind == "video"
        assert result.psnr_db > 20
        assert result.size_bytes < 0.7 * result.float_size_bytes
