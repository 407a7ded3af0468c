"""95 % confidence intervals of means over samples, the same at every run.

A mean of measurements gets the percentile bootstrap over samples (one sample = one seed and one
prompt). A share of yes/no answers gets Wilson's interval instead: the bootstrap of "64 of 64" is
the single point 1, as if 64 samples could prove that no sample ever differs.

These intervals speak about other seeds and prompts of the same kind, nothing else: not about other
prompt sets, other steps, or another calibration.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["Interval", "bootstrap_mean", "wilson"]

Interval = tuple[float, float]
_RESAMPLES = 4000


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Percentile bootstrap interval of the mean of ``values`` (at least one).

    One value alone gives no idea of the spread: the interval is then (value, value).
    """
    if len(values) == 1:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share, ``successes`` of ``trials`` (at least one)."""
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
