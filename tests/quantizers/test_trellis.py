"""Trellis-coded rounding is nearer than any grid, and errors are made up for."""

import math

import pytest
import torch

from viditq.formats import INT4, TCQ4
from viditq.quantizers import levels, round_gptq, round_two_sided, search_grid, two_sided_error
from viditq.quantizers.metric import Metric
from viditq.quantizers.trellis import round_trellis


def moment(size: int, seed: int) -> torch.Tensor:
    """Of a vector that is mostly in a quarter of all directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * size, size // 4, generator=generator)
    x = x @ torch.randn(size // 4, size, generator=generator)
    x += 0.1 * torch.randn(x.shape, generator=generator)
    return x.T @ x / len(x)


def snr_db(weight, error) -> float:
    return 10 * math.log10(float(weight.square().sum() / error.square().sum()))


def cost(weight, codes, scale, moment) -> float:
    error = weight - levels(codes, TCQ4) * scale[:, None]
    return float(((error @ moment) * error).sum())


@pytest.mark.parametrize("features", [64, 256, 1000])
def test_normal_weights_come_nearer_than_on_the_best_grid(features):
    """The bound of four bits is 24.1 dB, the best uniform grid's error 19.5."""
    weight = torch.randn(48, features)
    codes, scale = round_trellis(weight, Metric.of(torch.eye(features)))
    assert (codes.dtype, codes.shape, scale.shape) == (torch.int8, weight.shape, (48,))
    assert codes.min() >= -8 and codes.max() <= 7
    ours = snr_db(weight, weight - levels(codes, TCQ4) * scale[:, None])
    grid = search_grid(weight, INT4, torch.ones(features))
    theirs = snr_db(weight, weight - grid.values(grid.codes(weight, INT4)))
    assert ours > theirs + 2
    assert ours > 22


def test_errors_are_made_up_for_behind_them():
    weight, inputs = torch.randn(32, 96), moment(96, 1)
    codes, scale = round_gptq(weight, torch.ones(32), TCQ4, inputs, sweeps=0)
    plain = round_trellis(weight, Metric.of(torch.eye(96)))
    start = search_grid(weight, INT4, inputs.diagonal()).scale
    grid, steps = round_gptq(weight, start, INT4, inputs, sweeps=4)
    error = weight - grid * steps[:, None]
    assert cost(weight, codes, scale, inputs) < 0.6 * float(((error @ inputs) * error).sum())
    assert cost(weight, codes, scale, inputs) < 0.2 * cost(weight, *plain, inputs)


def test_rows_do_not_meet():
    weight, metric = torch.randn(7, 50), Metric.of(moment(50, 1))
    codes, scale = round_trellis(weight, metric)
    order = torch.randperm(7)
    again, own = round_trellis(weight[order], metric)
    assert torch.equal(again, codes[order])
    torch.testing.assert_close(own, scale[order])


def test_a_larger_weight_has_a_larger_scale_and_the_same_codes():
    weight, metric = torch.randn(4, 40), Metric.of(moment(40, 1))
    codes, scale = round_trellis(weight, metric)
    again, larger = round_trellis(4 * weight, metric)
    assert torch.equal(codes, again)
    torch.testing.assert_close(larger, 4 * scale)


def test_rows_of_zeros_and_no_rows():
    metric = Metric.of(torch.eye(40))
    codes, scale = round_trellis(torch.zeros(2, 40), metric)
    assert torch.isfinite(scale).all() and (scale > 0).all()
    codes, scale = round_trellis(torch.zeros(0, 40), metric)
    assert codes.shape == (0, 40) and scale.shape == (0,)


@pytest.mark.parametrize(("n", "k"), [(96, 48), (33, 36)])
def test_two_sided_costs_less_than_one_sided(n, k):
    weight, inputs, outputs = torch.randn(n, k), moment(k, 1), moment(n, 2)
    ((codes, scale),) = round_two_sided(
        [weight], [torch.ones(n)], TCQ4, inputs, [outputs], sweeps=0
    )
    alone = round_gptq(weight, torch.ones(n), TCQ4, inputs, sweeps=0)
    ours, theirs = (
        two_sided_error(weight - levels(c, TCQ4) * s[:, None], inputs, outputs)
        for c, s in ((codes, scale), alone)
    )
    assert ours < 0.8 * theirs
