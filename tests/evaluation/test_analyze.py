"""How inputs vary and what balancing changes, on inputs made for it and on real trajectories."""

import json

import pytest
import torch

from checks import refuses
from viditq.errors import InputError
from viditq.evaluation import analyze
from viditq.evaluation.incoherence import (
    Balanced,
    Incoherence,
    IncoherenceHook,
    balances,
    weight_incoherence,
)
from viditq.evaluation.pattern import channel_pattern
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


def measure(inputs, weight, guided=True, valid=None, alpha=0.5):
    """Incoherence of inputs (step, branch, token, channel) read by a weight (N, K)."""
    ways = balances(inputs.abs().amax(dim=(1, 2)), weight, alpha=alpha)
    hook = IncoherenceHook(len(inputs), guided, ways, weight.shape[1], valid=valid)
    for hook.position, x in enumerate(inputs):
        hook(torch.nn.Identity(), (x,))
    return hook.incoherence(weight_incoherence(ways, weight))


def variation_of(hook, role="ffn.up"):
    one = Balanced(raw=1, scaled=1, rotated=1, both=1)
    fields = ("call", "token", "worst_token", "channel", "weight")
    incoherence = Incoherence(
        **dict.fromkeys(fields, one), token_by_step=[one], token_by_condition=None
    )
    return hook.variation(role, "blocks.0", incoherence)


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


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
    variation = variation_of(watch(inputs))
    for other in ("token", "condition", "timestep", "channel"):
        assert getattr(variation, other) == pytest.approx(7.0 if other == level else 1.0)
    assert variation.static_share == pytest.approx(1.0)


def test_a_static_pattern_is_all_static_whatever_the_levels():
    pattern = torch.tensor([1.0, 30, 0.2, 5, 0.001, 0])
    levels = torch.tensor([1e-6, 3.0, 1e5])
    assert channel_pattern(levels[:, None] * pattern).static_share == pytest.approx(1.0)


def test_an_imbalance_that_moves_is_not_static():
    inputs = flat()[..., :STEPS]
    for step in range(STEPS):
        inputs[step, ..., step] *= 100
    assert variation_of(watch(inputs)).static_share == pytest.approx(0.0, abs=1e-9)


def test_the_parts_of_a_pattern_are_those_it_was_made_of():
    static = torch.tensor([2.0, -1, -1, 0])
    dynamic = torch.tensor([1.0, -1])[:, None] * torch.tensor([0.5, 0.5, -0.5, -0.5])
    level = torch.tensor([[3.0], [-7.0]])
    parts = channel_pattern((level + static + dynamic).exp2())
    torch.testing.assert_close(parts.static, static.double())
    torch.testing.assert_close(parts.dynamic, dynamic.double())
    assert parts.static_share == pytest.approx(1.5 / (1.5 + 0.25))


def test_channels_near_zero_and_steps_of_zero_have_no_say():
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(5, 8, generator=generator) + 0.1
    dust = 10 ** -torch.randint(4, 30, (5, 3), generator=generator).float()
    share = channel_pattern(pattern).static_share
    dusty = torch.cat([torch.cat([pattern, dust], dim=1), torch.zeros(1, 11)])
    assert channel_pattern(dusty).static_share == pytest.approx(share)
    assert channel_pattern(torch.zeros(3, 4)).static_share == 1.0


def test_scaling_takes_the_imbalance_of_a_static_pattern_away():
    """All of it with alpha 1, its square root with alpha 0.5 where the weights are even."""
    pattern = torch.cat([torch.full((8,), 64.0), torch.ones(120)])
    levels = torch.tensor([1.0, 0.1, 7.0])[:, None, None, None]
    inputs = levels * pattern.expand(3, 2, TOKENS, 128)
    weight = torch.ones(4, 128)
    raw = 64 * 128 / (8 * 64 + 120)
    for alpha, expected in ((1.0, 1.0), (0.5, 8 * 128 / (8 * 8 + 120))):
        found = measure(inputs, weight, alpha=alpha)
        for one in (found.channel, found.token, found.worst_token, found.call):
            assert (one.raw, one.scaled) == pytest.approx((raw, expected))
    assert measure(inputs, weight, alpha=1.0).weight.scaled == pytest.approx(raw)


def test_rotation_takes_away_an_outlier_that_moves_and_scaling_cannot():
    inputs = gaussian(STEPS, 2, TOKENS, 128)
    for step in range(STEPS):
        inputs[step, ..., 31 * step] = 200
    found = measure(inputs, gaussian(16, 128))
    assert found.token.raw > 50
    assert found.token.scaled > 0.3 * found.token.raw
    assert found.token.rotated < 2
    assert all(step.rotated < 2 for step in found.token_by_step)


def test_static_and_moving_outliers_need_both():
    """Static ones beside each other, too many for a rotation; one that moves, for no scaling."""
    inputs = gaussian(STEPS, 2, TOKENS, 512)
    inputs[..., :128] *= 60
    for step in range(STEPS):
        inputs[step, ..., 256 + 31 * step] = 100
    token = measure(inputs, gaussian(16, 512)).token
    assert token.both < min(token.scaled, token.rotated) < token.raw


def test_a_flat_input_gets_worse_by_rotation():
    token = measure(torch.ones(STEPS, 2, TOKENS, 128), torch.ones(4, 128)).token
    assert (token.raw, token.scaled) == pytest.approx((1.0, 1.0))
    assert token.rotated > 2


def test_incoherence_by_step_and_condition():
    inputs = torch.ones(STEPS, 2, TOKENS, 4)
    inputs[2, :, :, 0] = 5
    inputs[:, 1, 0, 0] = 9  # one token of those with a prompt
    found = measure(inputs, torch.ones(2, 4))
    assert [step.raw for step in found.token_by_step] == pytest.approx([1, 1, 5 / 2, 1])
    assert found.token_by_condition is not None
    assert [one.raw for one in found.token_by_condition] == pytest.approx([11 / 8, 11 / 8])
    assert found.worst_token.raw == pytest.approx(3.0)
    inputs[:, 1, :, 0] = 9
    found = measure(inputs, torch.ones(2, 4)).token_by_condition
    assert found is not None
    assert [one.raw for one in found] == pytest.approx([11 / 8, 3.0])


def test_incoherence_without_padding_and_of_an_empty_prompt():
    inputs = torch.ones(STEPS, 2, TOKENS, 4)
    inputs[..., 5:, 0] = 100
    found = measure(inputs, torch.ones(2, 4), valid=torch.arange(TOKENS) < torch.tensor([[0], [5]]))
    assert (found.call.raw, found.worst_token.raw) == (1.0, 1.0)
    assert found.token_by_condition is None
    assert measure(inputs, torch.ones(2, 4), guided=False).token_by_condition is None


def test_without_guidance_there_is_no_condition():
    hook = watch(flat()[:, :1], guided=False)
    assert variation_of(hook).condition is None
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
    variation = variation_of(hook, "cross_attn.kv")
    assert (variation.token, variation.condition, variation.channel) == (1.0, 1.0, 1.0)
    assert hook.profile(torch.arange(STEPS)).tokens.shape == (7,)


@pytest.mark.parametrize("kind", ["pixart", "latte"])
def test_along_a_trajectory(kind, request, tmp_path):
    source = request.getfixturevalue(kind) / "float"
    analysis = analyze(source, tmp_path / "out", num=1, steps=3)
    assert json.loads((tmp_path / "out" / "variation.json").read_text()) == analysis.to_json()
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {
        "summary.png",
        "balance.png",
        *(f"layer-{role}.png" for role in analysis.roles),
    }
    assert not (tmp_path / "out" / "recorded").exists()
    assert len(analysis.sentences()) == 7
    for layer in analysis.layers.values():
        levels = (layer.token, layer.condition, layer.timestep, layer.channel)
        assert all(value >= 1 - 1e-6 for value in levels if value is not None)
        # PixArt's empty prompt has no token here, since the tiny tokenizer ends none
        no_tokens = kind == "pixart" and layer.role == "cross_attn.kv"
        assert (layer.condition is None) == no_tokens
        assert (layer.incoherence.token_by_condition is None) == no_tokens
        assert len(layer.incoherence.token_by_step) == 3
        assert 1 <= layer.incoherence.token.raw <= layer.incoherence.worst_token.raw
        assert 0 <= layer.static_share <= 1
    # the text does not change while an image is made
    assert analysis.roles["cross_attn.kv"].timestep == pytest.approx(1.0, abs=1e-4)
    assert analysis.roles["cross_attn.kv"].static_share == pytest.approx(1.0, abs=1e-4)


def test_one_branch(pixart, tmp_path):
    analysis = analyze(pixart / "float", tmp_path / "out", num=1, steps=2, guidance=1.0)
    assert all(layer.condition is None for layer in analysis.layers.values())
    assert len(analysis.sentences()) == 6


def test_foreign_directory_is_left_alone(pixart, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with refuses(InputError, "other files"):
        analyze(pixart / "float", tmp_path, overwrite=True)
