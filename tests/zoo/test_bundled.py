"""The shipped pipelines: small, stock, and doing what their captions say."""

import pytest
import torch

from viditq.zoo import bundled_path, held_out_prompts
from viditq.zoo.evaluate import load, sample
from viditq.zoo.judge import Judge, accuracy
from viditq.zoo.scenes import KINDS


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def loaded(name):
    return load(bundled_path(name))


def test_sizes():
    files = [f for f in bundled_path("shapes-image").parent.rglob("*") if f.is_file()]
    assert max(f.stat().st_size for f in files) < 15e6
    assert sum(f.stat().st_size for f in files) < 45e6


@pytest.mark.parametrize("kind", KINDS)
def test_widths_and_depths(kind):
    config = loaded(f"shapes-{kind}").transformer.config
    assert config.num_attention_heads * config.attention_head_dim % 128 == 0
    assert config.num_layers * (2 if kind == "video" else 1) >= 8


def test_images_show_their_captions(judge):
    prompts = held_out_prompts("shapes-image", 4)
    samples = sample(loaded("shapes-image"), "image", prompts)
    assert accuracy(judge.read(samples), prompts)["all"] == 1.0


@pytest.mark.slow
def test_clips_show_their_captions(judge):
    prompts = held_out_prompts("shapes-video", 4)
    samples = sample(loaded("shapes-video"), "video", prompts)
    shares = accuracy(judge.read(samples), prompts)
    assert shares["shape"] == shares["colour"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_stress_variant_makes_the_same_samples(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDITQ_CACHE", str(tmp_path))
    prompts = held_out_prompts(f"shapes-{kind}", 1)
    plain = sample(loaded(f"shapes-{kind}"), kind, prompts, steps=3)
    stressed = sample(loaded(f"shapes-{kind}-stress"), kind, prompts, steps=3)
    torch.testing.assert_close(stressed, plain, rtol=0, atol=1e-4)
    made = bundled_path(f"shapes-{kind}-stress")
    assert made == bundled_path(f"shapes-{kind}-stress")
    assert made.parent == tmp_path
