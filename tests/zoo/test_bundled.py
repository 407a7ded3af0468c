"""The shipped pipelines: small, stock, and doing what their captions say."""

import pytest
import torch

from viditq.zoo import BUNDLED, bundled_path, held_out_prompts
from viditq.zoo.catalog import kind_of
from viditq.zoo.evaluate import load, sample
from viditq.zoo.judge import Judge, accuracy

PLAIN = [name for name in BUNDLED if not name.endswith("-stress")]
CLIPS = [name for name in PLAIN if kind_of(name) == "video"]


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def loaded(name):
    return load(bundled_path(name))


def test_sizes():
    files = [f for f in bundled_path("shapes-image").parent.rglob("*") if f.is_file()]
    assert max(f.stat().st_size for f in files) < 15e6
    assert sum(f.stat().st_size for f in files) < 60e6


@pytest.mark.parametrize("name", PLAIN)
def test_widths_and_depths(name):
    transformer = loaded(name).transformer
    config = transformer.config
    assert config.num_attention_heads * config.attention_head_dim % 128 == 0
    modules = dict(transformer.named_modules())
    assert sum(name.endswith(("attn1", "temporal_attn")) for name in modules) >= 8


def test_images_show_their_captions(judge):
    prompts = held_out_prompts("shapes-image", 4)
    samples = sample(loaded("shapes-image"), "image", prompts)
    assert accuracy(judge.read(samples), prompts)["all"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_clips_show_their_captions(name, judge):
    prompts = held_out_prompts(name, 4)
    samples = sample(loaded(name), "video", prompts)
    shares = accuracy(judge.read(samples), prompts)
    assert shares["shape"] == shares["colour"] == 1.0


@pytest.mark.parametrize("name", PLAIN)
def test_stress_variant_makes_the_same_samples(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDITQ_CACHE", str(tmp_path))
    prompts = held_out_prompts(name, 1)
    plain = sample(loaded(name), kind_of(name), prompts, steps=3)
    stressed = sample(loaded(f"{name}-stress"), kind_of(name), prompts, steps=3)
    torch.testing.assert_close(stressed, plain, rtol=0, atol=1e-4)
    made = bundled_path(f"{name}-stress")
    assert made == bundled_path(f"{name}-stress")
    assert made.parent == tmp_path
