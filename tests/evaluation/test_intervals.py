"""Intervals: they hold the mean, shrink with more samples, and never change between runs."""

import numpy as np
import pytest

from viditq.evaluation.intervals import bootstrap_mean, wilson


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(30, 2, 400)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_mean(values) == (low, high)


def test_one_value_and_equal_values():
    assert bootstrap_mean([3.5]) == (3.5, 3.5)
    assert bootstrap_mean([2.0] * 9) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # R's prop.test(…, correct = FALSE)
    [(64, 64, 0.9434, 1.0), (0, 10, 0.0, 0.2775), (45, 50, 0.7864, 0.9565)],
)
def test_wilson(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)
