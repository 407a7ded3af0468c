"""How much nearer to float one pipeline is than another, seed by seed.

Two pipelines that are sampled from the same noise share what makes a sample hard, so the interval
of the mean *difference* is much narrower than the difference of two intervals suggests. Only where
0 lies outside it is one of them said to be nearer.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from viditq.evaluation.intervals import Interval, bootstrap_mean

__all__ = ["Gain", "psnr_gain"]


class Gain(BaseModel):
    """Mean PSNR of one pipeline minus that of ``over``, paired over seeds.

    Attributes:
        over: the name of the other one.
        psnr_db, psnr_db_ci: the mean difference, and its 95 % interval.
        outcome: ``won`` where the whole interval is above 0, ``lost`` where it is below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    over: str
    psnr_db: float
    psnr_db_ci: Interval
    outcome: Literal["won", "lost", "within"]


def psnr_gain(ours: Sequence[float], theirs: Sequence[float], over: str) -> Gain:
    """The gain of ``ours`` over ``theirs``, PSNR in dB of the same seeds in the same order."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = bootstrap_mean(differences)
    outcome = "won" if low > 0 else "lost" if high < 0 else "within"
    mean = sum(differences) / len(differences)
    return Gain(over=over, psnr_db=mean, psnr_db_ci=(low, high), outcome=outcome)
