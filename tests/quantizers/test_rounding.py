"""Rounding: nearest is nearest; second-order rounding never raises the output error."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.formats import FORMATS, INT4
from viditq.quantizers import minmax_scale, output_error, round_gptq, round_nearest, search_grid

DAMPING, SWEEPS = 0.01, 4
ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def problem(n: int, k: int, tokens: int, seed: int = 0):
    """A weight and the second moment of an input whose channels are mixed and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) / k**0.5
    size = torch.rand(k, generator=generator) ** 3
    x = torch.randn(tokens, k, generator=generator) @ mix * size
    return torch.randn(n, k, generator=generator), x.T @ x / max(tokens, 1)


def objective(w, codes, scale, moment) -> torch.Tensor:
    """What second-order rounding lowers: the output error with its damping, per output channel."""
    damped = moment.double() + DAMPING * moment.double().diagonal().mean() * torch.eye(w.shape[1])
    return output_error(w.double(), codes, scale, damped)


@ALL
def test_nearest_is_the_nearest_of_all_codes(fmt):
    w = torch.randn(3, 17).double() * 2
    scale = torch.tensor([0.1, 1.0, 0.01]) * 7 / fmt.qmax  # the last clips
    every = torch.arange(fmt.qmin, fmt.qmax + 1).double()
    distance = (w[..., None] - every * scale.double()[:, None, None]).abs()
    chosen = (w - round_nearest(w, scale, fmt) * scale.double()[:, None]).abs()
    torch.testing.assert_close(chosen, distance.amin(-1), rtol=1e-9, atol=1e-12)


@ALL
def test_rounding_what_is_rounded_changes_nothing(fmt):
    """Each weight is rounded once; a second rounding, were it to happen, would have to be free."""
    codes = torch.randint(fmt.qmin, fmt.qmax + 1, (5, 33), dtype=torch.int8)
    scale = torch.rand(5) + 0.01
    assert torch.equal(round_nearest(codes * scale[:, None], scale, fmt), codes)


@given(
    n=st.integers(1, 4),
    # One column, odd, on and above the block of 128 that errors are spread in.
    k=st.sampled_from([1, 7, 32, 128, 131]),
    # No, one, fewer and more tokens than columns: the moment may be zero or singular.
    tokens=st.sampled_from([0, 1, 5, 300]),
    fmt=st.sampled_from(list(FORMATS.values())),
    clip=st.booleans(),
    sweeps=st.sampled_from([0, 1, 4]),
    seed=st.integers(0, 2**16),
)
def test_gptq_is_never_worse_than_nearest(n, k, tokens, fmt, clip, sweeps, seed):
    w, moment = problem(n, k, tokens, seed)
    start = search_grid(w, fmt, moment.diagonal()).scale if clip else minmax_scale(w, fmt)
    codes, scale = round_gptq(w, start, fmt, moment, sweeps=sweeps, damping=DAMPING)
    assert (codes.dtype, codes.shape) == (torch.int8, (n, k))
    assert (scale.dtype, scale.shape) == (torch.float32, (n,))
    assert torch.all((codes >= fmt.qmin) & (codes <= fmt.qmax))
    assert torch.all(torch.isfinite(scale) & (scale > 0))
    nearest = objective(w, round_nearest(w, start, fmt), start, moment)
    # A refitted scale is rounded to fp32, 2⁻²⁴ of the weight: no error below that is resolved.
    resolution = objective(w, torch.zeros_like(codes), scale, moment) * 2**-46
    assert torch.all(objective(w, codes, scale, moment) <= nearest * (1 + 1e-4) + resolution)


@pytest.mark.parametrize("tokens", [5, 300])
def test_every_sweep_lowers_the_error(tokens):
    w, moment = problem(8, 131, tokens)
    start, errors = minmax_scale(w, INT4), []
    for sweeps in range(6):
        codes, scale = round_gptq(w, start, INT4, moment, damping=DAMPING, sweeps=sweeps)
        errors.append(objective(w, codes, scale, moment))
    for before, after in pairwise(errors):
        assert torch.all(after <= before * (1 + 1e-5))
    assert torch.all(errors[-1] < errors[0])


def test_gptq_pays():
    """On a mixed input the error falls by a third at least; this is what a preset relies on."""
    w, moment = problem(64, 128, 1000)
    start = search_grid(w, INT4, moment.diagonal()).scale
    codes, scale = round_gptq(w, start, INT4, moment, sweeps=SWEEPS)
    nearest = output_error(w, round_nearest(w, start, INT4), start, moment)
    assert output_error(w, codes, scale, moment).sum() < 0.67 * nearest.sum()


def test_an_uncorrelated_input_leaves_nothing_to_gain():
    """With M = 1 nothing can be traded between columns: the codes are the nearest ones."""
    w = torch.randn(5, 33)
    scale = minmax_scale(w, INT4)
    codes, kept = round_gptq(w, scale, INT4, torch.eye(33), sweeps=0)
    assert torch.equal(codes, round_nearest(w, scale, INT4))
    assert torch.equal(kept, scale)


def test_the_order_of_the_columns_is_that_of_the_weight():
    """Columns are worked in another order; the codes come back in the weight's own."""
    w, moment = problem(4, 37, 200)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    scale = minmax_scale(w, INT4)
    codes, _ = round_gptq(w, scale, INT4, moment, sweeps=0)
    permuted, _ = round_gptq(w[:, order], scale, INT4, moment[order][:, order], sweeps=0)
    assert torch.equal(permuted, codes[:, order])


def test_a_weight_on_the_grid_is_kept():
    codes = torch.randint(-7, 8, (4, 33), dtype=torch.int8)
    codes[:, 0] = 7
    w, moment = codes * torch.tensor([0.5, 0.25, 2.0, 1.0])[:, None], problem(4, 33, 100)[1]
    rounded, scale = round_gptq(w, minmax_scale(w, INT4), INT4, moment, sweeps=SWEEPS)
    assert torch.equal(rounded, codes)
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.25, 2.0, 1.0]))


@pytest.mark.parametrize("kind", ["zero", "constant", "negative noise"])
def test_an_input_that_never_varies(kind):
    """The covariance of a constant input is 0 but for rounding, which may leave it indefinite."""
    k = 48
    moment = torch.zeros(k, k)
    if kind != "zero":
        x = torch.full((20, k), 100.0) + torch.randn(k) * 10
        mean = x.mean(0)
        moment = x.T @ x / 20 - torch.outer(mean, mean)
    if kind == "negative noise":
        moment = moment - 1e-2 * torch.eye(k)
    w = torch.randn(3, k)
    codes, scale = round_gptq(w, minmax_scale(w, INT4), INT4, moment, sweeps=SWEEPS)
    assert torch.isfinite(scale).all()
    # Nothing tells the columns apart, so the weight itself has to be close.
    error = (w - codes * scale[:, None]).abs()
    assert error.max() < 4 * minmax_scale(w, INT4).max()


def test_rows_of_zeros_and_no_rows():
    w, moment = problem(3, 9, 50)
    w[1] = 0
    codes, scale = round_gptq(w, minmax_scale(w, INT4), INT4, moment, sweeps=SWEEPS)
    assert not codes[1].any()
    assert torch.isfinite(scale).all()
    codes, scale = round_gptq(w[:0], minmax_scale(w, INT4)[:0], INT4, moment, sweeps=1)
    assert (codes.shape, scale.shape) == ((0, 9), (0,))
