"""Is a result right? Asked of every op before it is timed, in the same run.

Each check returns a sentence for the table, or raises :class:`CheckFailed` with what was found and
what is allowed. Codes are compared one by one: rounding may differ where the value before it lies
on the edge between two codes, so a small share of them may differ, by one. Floats are compared with
the same computation in fp64 and may be twice as far from it as torch's own in the same precision.
"""

import torch
from torch import Tensor

__all__ = ["CheckFailed", "equal_codes", "near", "within_twice"]

MOST_DIFFERING = 1e-3
"""fp32 sums in another order move a code by about 2e-4 of a step, so that share changes."""

SLACK = 4 * torch.finfo(torch.float32).eps
"""Relative; where torch happens to be exact, twice its error is no room at all."""


class CheckFailed(Exception):
    """A result is wrong."""


def equal_codes(codes: Tensor, expected: Tensor) -> str:
    """Two int8 tensors of one shape are equal, but for ties."""
    _same_shape(codes, expected)
    difference = (codes.int() - expected.int()).abs()
    largest, share = int(difference.max()), float((difference > 0).float().mean())
    if largest > 1 or share > MOST_DIFFERING:
        raise CheckFailed(
            f"wrong result: {share:.2%} of the codes differ, by up to {largest}; allowed are "
            f"{MOST_DIFFERING:.1%}, by 1"
        )
    return f"{share:.3%} of the codes differ by 1" if largest else "codes equal"


def within_twice(result: Tensor, same_precision: Tensor, exact: Tensor) -> str:
    """``result`` is at most twice as far from ``exact`` (fp64) as torch's ``same_precision``."""
    _same_shape(result, exact)
    ours, theirs = (float((t.double() - exact).abs().max()) for t in (result, same_precision))
    if not ours <= 2 * theirs + SLACK * float(exact.abs().max()):
        raise CheckFailed(
            f"wrong result: the error is {ours:.3g}, torch's in the same precision {theirs:.3g}"
        )
    return f"error {ours / theirs:.2f}× torch's" if theirs else "exact to fp32"


def near(result: Tensor, exact: Tensor, allowed: float) -> str:
    """The norm of the difference is at most ``allowed`` times that of ``exact``."""
    _same_shape(result, exact)
    error = float((result.double() - exact.double()).norm() / exact.double().norm())
    if not error <= allowed:
        raise CheckFailed(f"wrong result: relative error {error:.3g}, allowed {allowed:g}")
    return f"relative error {error:.2g}"


def _same_shape(result: Tensor, expected: Tensor) -> None:
    if result.shape != expected.shape:
        raise CheckFailed(
            f"wrong result: shape {tuple(result.shape)} instead of {tuple(expected.shape)}"
        )
