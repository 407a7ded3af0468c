"""The four levels of variation, on inputs made for them and on real trajectories."""

import json

import pytest
import torch

from checks import refuses
from viditq.errors import InputError
from viditq.evaluation import analyze
from viditq.evaluation.variation import VariationHook

STEPS, TOKENS, CHANNELS = 4, 9, 11


def watch(inputs, guided=True):
    """Run inputs (step, branch, token, channel) through a hook."""
    hook = VariationHook(STEPS, guided)
    module = torch.nn.Identity()
    for step, x in enumerate(inputs):
        hook.position = step
        hook(module, (x,))
    return hook


def flat():
    return torch.ones(STEPS, 2, TOKENS, CHANNELS)


@pytest.mark.parametrize("level", ["token", "condition", "timestep", "channel"])
def test_each_level_is_seen_alone(level):
    inputs = flat()
    {
        "token": inputs[:, :, 3],
        "condition": inputs[:, 1],
        "timestep": inputs[2],
        "channel": inputs[..., 5],
    }[level].mul_(-7)
    variation = watch(inputs).variation("ffn.up", "blocks.0")
    for other in ("token", "condition", "timestep", "channel"):
        assert getattr(variation, other) == pytest.approx(7.0 if other == level else 1.0)
    assert variation.channel_stability == pytest.approx(1.0)


def test_an_imbalance_that_moves_is_not_stable():
    inputs = flat()
    for step in range(STEPS):
        inputs[step, ..., step] *= 100
    assert watch(inputs).variation("ffn.up", "b").channel_stability < 0.6


def test_without_guidance_there_is_no_condition():
    hook = watch(flat()[:, :1], guided=False)
    assert hook.variation("ffn.up", "b").condition is None
    assert hook.profile(torch.arange(STEPS)).conditions.shape == (STEPS, 1)


def test_padding_does_not_count():
    inputs = flat()
    inputs[:, 0, 4:] = 1000
    inputs[:, 1, 7:] = 1000
    hook = VariationHook(STEPS, guided=True)
    for step, x in enumerate(inputs):
        hook.position = step
        hook.valid = torch.arange(TOKENS) < torch.tensor([[4], [7]])
        hook(torch.nn.Identity(), (x,))
    variation = hook.variation("cross_attn.kv", "blocks.0")
    assert (variation.token, variation.condition, variation.incoherence) == (1.0, 1.0, 1.0)
    assert hook.profile(torch.arange(STEPS)).tokens.shape == (7,)


@pytest.mark.parametrize("kind", ["pixart", "latte"])
def test_along_a_trajectory(kind, request, tmp_path):
    source = request.getfixturevalue(kind) / "float"
    analysis = analyze(source, tmp_path / "out", num=1, steps=3)
    assert json.loads((tmp_path / "out" / "variation.json").read_text()) == analysis.to_json()
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"summary.png", *(f"layer-{role}.png" for role in analysis.roles)}
    assert not (tmp_path / "out" / "recorded").exists()
    assert len(analysis.sentences()) == 4
    for layer in analysis.layers.values():
        levels = (layer.token, layer.condition, layer.timestep, layer.channel)
        assert all(value >= 1 - 1e-6 for value in levels if value is not None)
        # PixArt's empty prompt has no token here, since the tiny tokenizer ends none
        no_tokens = kind == "pixart" and layer.role == "cross_attn.kv"
        assert (layer.condition is None) == no_tokens
    # the text does not change while an image is made
    assert analysis.roles["cross_attn.kv"]["timestep"] == pytest.approx(1.0, abs=1e-4)


def test_one_branch(pixart, tmp_path):
    analysis = analyze(pixart / "float", tmp_path / "out", num=1, steps=2, guidance=1.0)
    assert all(layer.condition is None for layer in analysis.layers.values())
    assert len(analysis.sentences()) == 3


def test_foreign_directory_is_left_alone(pixart, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with refuses(InputError, "other files"):
        analyze(pixart / "float", tmp_path, overwrite=True)
