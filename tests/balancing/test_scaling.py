"""The smoothing vector: positive, of mean level one, moving difficulty as α says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.balancing import smooth_scale, static_profile


@given(
    k=st.sampled_from([1, 7, 64]),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    # Two decades on each side stay within the bounds, twelve do not.
    spread=st.sampled_from([0, 1, 2, 12]),
)
def test_positive_with_geometric_mean_one(k, alpha, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    activation, weight = (
        10 ** ((torch.rand(k, generator=generator) - 0.5) * spread) for _ in range(2)
    )
    s = smooth_scale(activation, weight, alpha)
    assert (s.dtype, s.shape) == (torch.float32, (k,))
    assert torch.all(torch.isfinite(s) & (s > 0))
    assert torch.all((s >= 1 / 256) & (s <= 256))
    if spread <= 2:
        assert s.double().log().mean().abs() < 1e-5


def test_alpha_says_whose_channels_become_even():
    activation, weight = torch.rand(33) + 0.01, torch.rand(33) + 0.01

    def spread(x):
        return (x.max() / x.min()).item()

    even = pytest.approx(1, rel=1e-5)
    assert spread(activation / smooth_scale(activation, weight, 1.0)) == even
    assert spread(weight * smooth_scale(activation, weight, 0.0)) == even
    # In the middle both sides are the same, channel by channel.
    s = smooth_scale(activation, weight, 0.5)
    assert spread((activation / s) / (weight * s)) == even


def test_only_ratios_count():
    activation, weight = torch.rand(9) + 0.1, torch.rand(9) + 0.1
    s = smooth_scale(activation, weight, 0.3)
    torch.testing.assert_close(smooth_scale(activation * 1e4, weight * 1e-6, 0.3), s)


def test_a_dead_channel_is_left_alone_and_does_not_count():
    activation, weight = torch.rand(9) + 0.1, torch.rand(9) + 0.1
    live = smooth_scale(activation[:7], weight[:7], 0.5)
    activation[7], weight[8] = 0.0, 0.0
    s = smooth_scale(activation, weight, 0.5)
    torch.testing.assert_close(s[:7], live)
    assert s[7:].tolist() == [1.0, 1.0]
    assert smooth_scale(torch.zeros(3), torch.zeros(3), 0.5).tolist() == [1.0] * 3


def test_a_constant_pattern_is_its_own_profile():
    pattern = torch.rand(1, 9) + 0.1
    torch.testing.assert_close(static_profile(pattern.repeat(5, 1)), pattern[0])


def test_the_level_of_a_step_does_not_decide():
    """Steps that are the same pattern louder and softer give the pattern at the loudest level."""
    pattern = torch.rand(9) + 0.1
    loud = torch.tensor([1.0, 0.01, 30.0])[:, None] * pattern
    torch.testing.assert_close(static_profile(loud), 30 * pattern)


def test_an_outlier_of_one_step_counts_as_one_of_many():
    steps = torch.ones(10, 8)
    steps[3, 2] = 100.0
    profile = static_profile(steps)
    assert 1 < profile[2] / profile[0] < 100 / 5


def test_a_silent_step():
    profile = static_profile(torch.stack([torch.zeros(4), torch.ones(4)]))
    assert torch.isfinite(profile).all()
    assert not static_profile(torch.zeros(3, 4)).any()
