"""95 % confidence intervals of means over samples, the same at every run.

A mean of measurements gets the percentile bootstrap over samples (one sample = one seed and one
prompt). A share of yes/no answers gets Wilson's interval instead: the bootstrap of "64 of 64" is
the single point 1, as if 64 samples could prove that no sample ever differs.

These intervals speak about other seeds and prompts of the same kind, nothing else: not about other
prompt sets, other steps, or another calibration.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["Interval", "bootstrap_mean", "wilson"]

Interval = tuple[float, float]
_RESAMPLES = 4000
_Z = 1.959964  # the 97.5 % point of the normal distribution


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of ``values`` (at least one).

    One value alone gives no idea of the spread: the interval is then (value, value).
    """
    data = np.asarray(values, dtype=np.float64)
    assert data.size > 0
    draws = np.random.default_rng(seed).integers(0, data.size, (_RESAMPLES, data.size))
    low, high = np.quantile(data[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share, ``successes`` of ``trials`` (at least one)."""
    assert 0 <= successes <= trials
    assert trials > 0
    share, z2 = successes / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
