"""A checkpoint and the other parts become a pipeline that runs, or nothing is written."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL

import tiny
import upstream
from checks import refuses
from viditq import pipelines
from viditq.errors import InputError
from viditq.pipelines import convert_opensora
from viditq.pipelines.opensora import OpenSoraPipeline
from viditq.pipelines.opensora12 import OpenSora12Pipeline

# The size of the recorded network, with an autoencoder that halves.
SIZE = {"size": 16, "frames": 3, "heads": 3, "space_scale": 0.5, "time_scale": 2 / 3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint, a T5 with its tokenizer in one directory, and an autoencoder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    torch.save(upstream.weights(), folder / "model.pth")
    tiny.text_encoder(12).half().save_pretrained(folder / "t5")
    tiny.tokenizer().save_pretrained(folder / "t5")
    tiny.autoencoder().save_pretrained(folder / "vae")
    return folder


def convert(parts, out, **options):
    given = {"text_encoder": parts / "t5", "vae": parts / "vae", **SIZE, **options}
    return convert_opensora(parts / "model.pth", out, **given)


@pytest.fixture(scope="module")
def converted(parts, tmp_path_factory):
    return convert(parts, tmp_path_factory.mktemp("converted") / "opensora")


def test_it_is_a_pipeline_with_these_weights(converted):
    pipe = pipelines.load(converted)
    assert type(pipe) is OpenSoraPipeline
    expected = upstream.stdit().state_dict()
    found = pipe.transformer.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    samples = pipelines.generate(pipe, ["a red star"], [0], steps=2)
    assert samples.shape == (1, 3, 16, 16, 3)
    assert pipe.scheduler.config.variance_type == "learned_range"


def test_what_is_in_the_directory(converted):
    names = {path.name for path in converted.iterdir()}
    parts = {"text_encoder", "tokenizer", "vae", "transformer", "scheduler"}
    assert names == parts | {"model_index.json", "converted.json"}
    assert json.loads((converted / "converted.json").read_text())["checkpoint"] == "model.pth"
    assert [path.name for path in converted.parent.iterdir()] == ["opensora"]


def test_parts_out_of_another_pipeline(parts, tmp_path):
    other = tiny.saved(tiny.opensora(caption=12), tmp_path / "other")
    out = convert(parts, tmp_path / "out", text_encoder=other, vae=other)
    expected = AutoencoderKL.from_pretrained(other, subfolder="vae").state_dict()
    found = pipelines.load(out).vae.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_scales_follow_from_the_size(parts, tmp_path):
    out = convert(parts, tmp_path / "out", space_scale=None)
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert config["spatial_interpolation_scale"] == 16 / 512
    assert config["temporal_interpolation_scale"] == 2 / 3


def test_an_earlier_output_is_replaced_only_if_asked(parts, converted, tmp_path):
    out = shutil.copytree(converted, tmp_path / "out")
    with refuses(InputError, "--overwrite"):
        convert(parts, out)
    assert convert(parts, out, overwrite=True, time_scale=1.0) == out
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert config["temporal_interpolation_scale"] == 1.0


def test_another_pipeline_is_never_replaced(parts, tmp_path):
    other = tiny.saved(tiny.pixart(), tmp_path / "other")
    with refuses(InputError, str(other), "holds other files"):
        convert(parts, other, overwrite=True)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
@pytest.mark.parametrize("source", ["./nowhere", "nobody/nothing", "a/b/c"])
def test_a_part_is_not_there(parts, tmp_path, part, source):
    with refuses(InputError, source, part):
        convert(parts, tmp_path / "out", **{part: source})
    assert not list(tmp_path.iterdir())


def test_a_part_is_something_else(parts, tmp_path):
    with refuses(InputError, str(parts / "t5"), "vae"):
        convert(parts, tmp_path / "out", vae=parts / "t5")


def test_a_text_encoder_of_another_width(parts, tmp_path):
    other = tiny.saved(tiny.opensora(caption=16), tmp_path / "other")
    with refuses(InputError, "model.pth has 12 caption channels", f"{other} has 16"):
        convert(parts, tmp_path / "out", text_encoder=other)


@pytest.mark.parametrize(("size", "fact"), [(15, "multiples of 2"), (0, "multiples"), (14, "7×7")])
def test_a_size_that_cannot_be(parts, tmp_path, size, fact):
    with refuses(InputError, fact):
        convert(parts, tmp_path / "out", size=size)


SIZE_1_2 = {**SIZE, "width": 20, "frames": 5, "space_scale": None, "time_scale": None}


class TestVersion12:
    @pytest.fixture
    def files(self, parts, tmp_path):
        """Sources of every part, with an autoencoder in time whose file has the other as well."""
        image = tiny.autoencoder()
        with torch.no_grad():
            for tensor in image.state_dict().values():
                tensor.fill_(0.25)
        named = {f"spatial_vae.module.{n}": t for n, t in image.state_dict().items()}
        torch.save(upstream.weights("1.2"), tmp_path / "model.pth")
        torch.save({**upstream.weights("1.2-vae"), **named}, tmp_path / "vae.pth")
        (tmp_path / "t5").symlink_to(parts / "t5")
        (tmp_path / "vae").symlink_to(parts / "vae")
        return tmp_path

    def test_it_is_a_pipeline_with_these_weights(self, files):
        out = convert(files, files / "out", temporal_vae=files / "vae.pth", **SIZE_1_2)
        pipe = pipelines.load(out)
        assert type(pipe) is OpenSora12Pipeline
        expected, found = upstream.stdit3().state_dict(), pipe.transformer.state_dict()
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert all((tensor == 0.25).all() for tensor in pipe.vae.state_dict().values())
        samples = pipelines.generate(pipe, ["a red star"], [0], steps=2)
        assert samples.shape == (1, 5, 16, 20, 3)

    def test_its_autoencoder_is_asked_for(self, files):
        with refuses(InputError, "Open-Sora 1.2", "--temporal-vae", "hpcai-tech/OpenSora-VAE-v1.2"):
            convert(files, files / "out", **SIZE_1_2)

    def test_an_image_autoencoder_of_other_sizes(self, files):
        torch.save(
            {**upstream.weights("1.2-vae"), "spatial_vae.module.more": torch.zeros(1)},
            files / "vae.pth",
        )
        with refuses(InputError, "vae.pth", "lacks the tensor"):
            convert(files, files / "out", temporal_vae=files / "vae.pth", **SIZE_1_2)

    def test_options_of_the_other_version(self, parts, files, tmp_path):
        with refuses(InputError, "Open-Sora 1.2", "space_scale"):
            convert(files, tmp_path / "out", **{**SIZE_1_2, "space_scale": 1.0})
        with refuses(InputError, "Open-Sora 1.0", "width"):
            convert(parts, tmp_path / "out", width=16)
        assert not (tmp_path / "out").exists()
