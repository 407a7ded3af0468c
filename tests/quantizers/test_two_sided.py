"""Two-sided rounding: on its own objective it beats GPTQ, and where rows do not meet it is GPTQ."""

import pytest
import torch

from viditq.formats import INT4
from viditq.quantizers import (
    minmax_grid,
    minmax_scale,
    round_gptq,
    round_two_sided,
    two_sided_error,
)


def moment(size: int, rank: int, seed: int) -> torch.Tensor:
    """Of a vector that is mostly in ``rank`` directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * size, rank, generator=generator) @ torch.randn(
        rank, size, generator=generator
    )
    x += 0.1 * torch.randn(x.shape, generator=generator)
    return x.T @ x / len(x)


def dequantized(codes, scale):
    return codes.float() * scale[:, None]


@pytest.mark.parametrize(("n", "k"), [(64, 48), (33, 17), (5, 40)])
def test_costs_less_than_gptq_on_both_sides_and_more_on_one(n, k):
    weight, inputs, outputs = torch.randn(n, k), moment(k, k // 4, 1), moment(n, n // 4 + 1, 2)
    scale = minmax_scale(weight, INT4)
    ((codes, found),) = round_two_sided([weight], [scale], INT4, inputs, [outputs], sweeps=0)
    one_sided, _ = round_gptq(weight, scale, INT4, inputs, sweeps=0)
    assert (codes.dtype, codes.shape, found.shape) == (torch.int8, (n, k), (n,))
    ours, theirs = weight - dequantized(codes, found), weight - dequantized(one_sided, scale)
    assert two_sided_error(ours, inputs, outputs) < 0.8 * two_sided_error(theirs, inputs, outputs)
    # Nothing comes for free: seen one by one, the rows are worse.
    assert two_sided_error(ours, inputs, torch.eye(n)) > two_sided_error(
        theirs, inputs, torch.eye(n)
    )


def test_is_gptq_where_rows_do_not_meet():
    weight, inputs = torch.randn(40, 24), moment(24, 6, 1)
    scale, gradient = minmax_scale(weight, INT4), torch.rand(40).diag()
    ((codes, found),) = round_two_sided([weight], [scale], INT4, inputs, [gradient], sweeps=1)
    expected, expected_scale = round_gptq(weight, scale, INT4, inputs, sweeps=1)
    torch.testing.assert_close(found, expected_scale)
    assert (codes != expected).float().mean() < 1e-3


def test_layers_of_one_input_do_not_mind_each_other():
    inputs = moment(24, 6, 1)
    weights = [torch.randn(n, 24) for n in (32, 7)]
    scales = [minmax_scale(weight, INT4) for weight in weights]
    gradients = [moment(32, 8, 3), moment(7, 2, 4)]
    together = round_two_sided(weights, scales, INT4, inputs, gradients, sweeps=2)
    for pair, weight, scale, gradient in zip(together, weights, scales, gradients, strict=True):
        (alone,) = round_two_sided([weight], [scale], INT4, inputs, [gradient], sweeps=2)
        assert torch.equal(pair[0], alone[0])
        torch.testing.assert_close(pair[1], alone[1])


def test_with_a_scale_for_every_group_of_columns():
    n, k = 48, 40
    weight, inputs, outputs = torch.randn(n, k), moment(k, k // 4, 1), moment(n, n // 4, 2)
    scale = minmax_grid(weight, INT4, group=16).steps(k)
    ((codes, found),) = round_two_sided([weight], [scale], INT4, inputs, [outputs], sweeps=2)
    assert torch.equal(found, scale)
    one_sided, _ = round_gptq(weight, scale, INT4, inputs, sweeps=2)
    ours, theirs = (weight - each.float() * scale for each in (codes, one_sided))
    assert two_sided_error(ours, inputs, outputs) < 0.8 * two_sided_error(theirs, inputs, outputs)


def test_a_layer_that_nothing_depends_on():
    weight = torch.randn(20, 8)
    scale = minmax_scale(weight, INT4)
    ((codes, found),) = round_two_sided(
        [weight], [scale], INT4, torch.eye(8), [torch.zeros(20, 20)], sweeps=0
    )
    assert torch.equal(found, scale)
    assert (weight - dequantized(codes, found)).abs().max() <= scale.max()
