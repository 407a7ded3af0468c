"""Latte for classes samples as its authors' code did, and goes the whole way like the others."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.quantizers import auto
from diffusers.schedulers import scheduling_ddpm

import tiny
import upstream
from checks import refuses
from viditq import checkpoint, pipelines
from viditq.errors import InputError
from viditq.evaluation import compare
from viditq.nn import QuantLinear
from viditq.pipelines.latte_class import LatteClassPipeline

CLASSES = ["Archery", "2"]
SAMPLES = {"prompts": CLASSES, "seeds": [3, 1], "steps": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.saved(tiny.latte_of_classes(), tmp_path_factory.mktemp("latte") / "float")


@pytest.fixture(scope="module")
def quantized(source):
    """Calibrated on the classes that are taken when none are given."""
    return pipelines.quantize(source, source.with_name("w8a8"), preset="w8a8", steps=3, kept=2)


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
    recorded = upstream.recorded(upstream.LATTE)
    pipe = tiny.latte_of_classes()
    pipe.register_modules(transformer=upstream.latte_class())
    pipe.set_progress_bar_config(disable=True)
    noise = iter(recorded["sample.noise"].transpose(2, 3))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noise))
    latents = pipe(
        recorded["sample.labels"].tolist(),
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=recorded["sample.latents"].transpose(1, 2),
        output_type="latent",
    ).frames
    expected = recorded["sample.result"].transpose(1, 2)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_what_the_transformer_is_shown(pipe):
    [first, *_] = seen_by_transformer(pipe)
    assert first["class_labels"].tolist() == [3, 3, 0, 2]  # of three classes; none stands before
    assert first["timestep"].tolist() == [999] * 4
    assert torch.equal(first["hidden_states"][:2], first["hidden_states"][2:])


def test_without_guidance_there_is_one_branch(pipe):
    [first, *_] = seen_by_transformer(pipe, guidance=1.0)
    assert first["class_labels"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "number"),
    [("Archery", 0), (" yoyo", 2), ("Dunk", 1), ("basketball dunk", 1), ("1", 1), (2, 2)],
)
def test_numbers_and_names(pipe, given, number):
    assert pipe.class_number(given) == number


@pytest.mark.parametrize("given", ["Basketball", "3", "-1", 3, "1.0", ""])
def test_no_such_class(pipe, given):
    with refuses(InputError, repr(given), "a number from 0 to 2", "'archery'"):
        pipe([given])


@pytest.mark.parametrize("given", [[], [2.5], [None]])
def test_no_class(pipe, given):
    with refuses(InputError, "a class or a list of classes", repr(given)):
        pipe(given)


def test_classes_without_names(tmp_path):
    pipe = pipelines.load(tiny.saved(tiny.latte_of_classes(classes=5), tmp_path / "latte"))
    assert pipe.class_number("4") == 4
    with refuses(InputError, "'Archery'", "a number from 0 to 4."):
        pipe("Archery")


def test_a_network_that_knows_no_classes(tmp_path):
    """Prompts, those to calibrate with included, say how many videos, and guidance is none."""
    folder = tiny.saved(tiny.latte_of_classes(classes=0), tmp_path / "faces")
    pipe = pipelines.load(folder)
    [first, *_] = seen_by_transformer(pipe)
    assert first["class_labels"] is None
    assert first["hidden_states"].shape[0] == 2
    out = pipelines.quantize(folder, tmp_path / "w8a8", steps=2, kept=2)
    samples = pipelines.generate(pipelines.load(out), **SAMPLES)
    assert (samples - pipelines.generate(pipe, **SAMPLES)).abs().mean() < 0.05


def test_samples_do_not_depend_on_the_batch(pipe):
    together = pipelines.generate(pipe, **SAMPLES)
    alone = pipelines.generate(pipe, **SAMPLES, batch_size=1)
    assert together.shape == (2, 2, 16, 16, 3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.std() > 0.01


def test_a_scheduler_without_learned_variance(source):
    pipe = pipelines.load(source)
    stochastic = pipelines.generate(pipe, **SAMPLES)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, variance_type=None)
    assert not torch.equal(pipelines.generate(pipe, **SAMPLES), stochastic)


def test_images_come_out_as_asked(pipe):
    settings = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0)}
    [[first, second]] = pipe("Archery", **settings).frames
    assert first.size == second.size == (16, 16)
    assert pipe(1, **settings, output_type="np").frames.shape == (1, 2, 16, 16, 3)
    [tensor] = pipe([1], **settings, output_type="pt", return_dict=False)
    assert tensor.shape == (1, 2, 3, 16, 16)


class TestQuantized:
    def test_layers(self, quantized):
        summary = checkpoint.inspect(quantized)
        assert summary.transformer == "LatteClassTransformer3DModel"
        assert summary.num_layers == 2 * 2 * 4
        assert summary.provenance.measured["denoiser_sqnr_db"] > 25
        roles = {layer.role for layer in summary.layers.values()}
        assert roles == {
            *("self_attn.qkv", "self_attn.out", "temporal_attn.qkv", "temporal_attn.out"),
            *("ffn.up", "ffn.down"),
        }

    def test_classes_to_calibrate_with(self, source, quantized):
        assert pipelines.calibration_prompts(source, 3) == ["0", "1", "2"]
        assert pipelines.calibration_prompts(source, 6) == ["0", "0", "1", "1", "2", "2"]
        assert checkpoint.inspect(quantized).provenance.num_prompts == 16

    def test_loaded_it_is_quantized_and_close_to_float(self, pipe, quantized):
        ours = pipelines.load(quantized)
        assert sum(isinstance(m, QuantLinear) for m in ours.transformer.modules()) == 2 * 2 * 4
        assert type(ours) is LatteClassPipeline
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
        theirs = LatteClassPipeline.from_pretrained(quantized, dtype=dtype)
        theirs.set_progress_bar_config(disable=True)
        samples = pipelines.generate(theirs, **SAMPLES)
        ours = pipelines.load(quantized, dtype=dtype)
        assert torch.equal(samples, pipelines.generate(ours, **SAMPLES))

    def test_compare(self, source, quantized, tmp_path):
        comparison = compare(
            source, [quantized], CLASSES, out=tmp_path / "out", num=2, steps=2, batch_size=2
        )
        [result] = comparison.results
        assert comparison.kind == "video"
        assert result.psnr_db > 20
        assert result.size_bytes < 0.7 * result.float_size_bytes
