"""The branch is the best of its rank, and nothing is lost beside it."""

import pytest
import torch

from viditq.quantizers import split_low_rank


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_takes_the_largest_singular_values(shape, rank):
    weight = torch.randn(shape)
    down, up, rest = split_low_rank(weight, rank)
    kept = min(rank, *shape)
    assert (down.shape, up.shape) == ((kept, shape[1]), (shape[0], kept))
    assert down.dtype == up.dtype == torch.bfloat16
    torch.testing.assert_close(up.float() @ down.float() + rest, weight, rtol=1e-6, atol=1e-6)
    lost = torch.linalg.svdvals(weight)[kept:].square().sum().sqrt()
    # bf16 has eight bits: its factors miss the best branch by that much of the weight.
    assert rest.norm() <= lost + 2**-8 * weight.norm()
    assert rest.norm() >= lost * (1 - 1e-5)


def test_leaves_less_to_round_where_one_direction_is_large():
    """SVDQuant's point: the largest weight, and with it the step, shrinks."""
    weight = torch.randn(64, 64) + 50 * torch.outer(torch.randn(64), torch.randn(64)) / 8
    _, _, rest = split_low_rank(weight, 1)
    assert rest.abs().max() < 0.3 * weight.abs().max()
