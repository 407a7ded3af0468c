"""Paired gains: the mean difference, and no claim that its interval does not carry."""

import pytest

from viditq.evaluation.gains import psnr_gain


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "outcome"),
    [
        ((31.0, 22.0, 43.0), (30.0, 20.0, 40.0), 2.0, "won"),
        ((29.0, 18.0, 37.0), (30.0, 20.0, 40.0), -2.0, "lost"),
        ((33.0, 18.0, 41.0), (30.0, 20.0, 40.0), 2 / 3, "within"),
        ((30.0,), (30.0,), 0.0, "within"),
    ],
)
def test_gain(ours, theirs, mean, outcome):
    gain = psnr_gain(ours, theirs, "theirs")
    assert gain.psnr_db == pytest.approx(mean)
    assert gain.psnr_db_ci[0] <= gain.psnr_db <= gain.psnr_db_ci[1]
    assert (gain.over, gain.outcome) == ("theirs", outcome)


def test_what_both_find_hard_does_not_widen_the_interval():
    theirs = [20.0, 30.0, 40.0, 50.0]
    ours = [value + 1 for value in theirs]
    assert psnr_gain(ours, theirs, "theirs").psnr_db_ci == pytest.approx((1.0, 1.0))


def test_seeds_must_fit():
    with pytest.raises(ValueError, match="shorter"):
        psnr_gain([1.0, 2.0], [1.0], "theirs")
