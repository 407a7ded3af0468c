"""A checkpoint of Latte for classes becomes a pipeline that runs, or nothing is written."""

import json

import pytest
import torch

import tiny
import upstream
from checks import refuses
from viditq import pipelines
from viditq.errors import InputError
from viditq.pipelines import convert_latte
from viditq.pipelines.latte_class import LatteClassPipeline

NAMES = ("Archery", "Bowling", "Diving", "Fencing", "YoYo")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint, an autoencoder and a list of classes."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    torch.save({"ema": upstream.weights(upstream.LATTE)}, folder / "ucf101.pt")
    tiny.autoencoder().save_pretrained(folder / "vae")
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def convert(parts, out, **options):
    given = {"vae": parts / "vae", "heads": 3, **options}
    return convert_latte(parts / "ucf101.pt", out, **given)


def test_it_is_a_pipeline_with_these_weights(parts, tmp_path):
    out = convert(parts, tmp_path / "out", labels=parts / "classes.txt")
    pipe = pipelines.load(out)
    assert type(pipe) is LatteClassPipeline
    expected, found = upstream.latte_class().state_dict(), pipe.transformer.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    samples = pipelines.generate(pipe, ["fencing", "4"], [0, 1], steps=2)
    assert samples.shape == (2, 3, 16, 16, 3)
    assert pipe.scheduler.config.variance_type == "learned_range"
    told = json.loads((out / "converted.json").read_text())
    assert told["checkpoint"] == "ucf101.pt"


def test_names_are_not_needed(parts, tmp_path):
    pipe = pipelines.load(convert(parts, tmp_path / "out"))
    assert pipe.class_number("3") == 3
    assert not pipe.numbers


def test_another_number_of_names(parts, tmp_path):
    (tmp_path / "few.txt").write_text("Archery\n")
    with refuses(InputError, "ucf101.pt has 5 classes", "few.txt has 1"):
        convert(parts, tmp_path / "out", labels=tmp_path / "few.txt")
    with refuses(InputError, "nowhere.txt", "cannot be read"):
        convert(parts, tmp_path / "out", labels=tmp_path / "nowhere.txt")
    assert not (tmp_path / "out").exists()


def test_an_earlier_output_is_replaced_only_if_asked(parts, tmp_path):
    out = convert(parts, tmp_path / "out")
    with refuses(InputError, "--overwrite"):
        convert(parts, out)
    assert convert(parts, out, labels=parts / "classes.txt", overwrite=True) == out
    assert pipelines.load(out).class_number("YoYo") == 4


def test_an_autoencoder_of_other_channels(parts, tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=3, norm_num_groups=4, block_out_channels=(8,)).save_pretrained(
        tmp_path / "vae"
    )
    with refuses(InputError, "ucf101.pt has 4 latent channels", "has 3"):
        convert(parts, tmp_path / "out", vae=tmp_path / "vae")


@pytest.mark.parametrize("source", ["./nowhere", "nobody/nothing"])
def test_no_autoencoder(parts, tmp_path, source):
    with refuses(InputError, source, "vae"):
        convert(parts, tmp_path / "out", vae=source)
    assert not list(tmp_path.iterdir())
