"""The trellis search: no sequence is better where all can be tried, the same on every device."""

import itertools

import pytest
import torch

from viditq.ops import pack_int4, round_tcq4, unpack_tcq4
from viditq.ops.round_tcq4 import reference

# Less than a path holds errors of, a row as long as that, two blocks of columns of the kernel.
SHAPES = pytest.mark.parametrize(("rows", "features"), [(3, 5), (2, 32), (1, 133)])


def root(size: int, seed: int = 0) -> torch.Tensor:
    """Of correlated inputs: their second moment is ``R Rᵀ``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * size, size, generator=generator)
    x = x @ (torch.eye(size) + torch.randn(size, size, generator=generator) / size**0.5)
    moment = (x.T @ x / len(x)).flip(0, 1)
    return torch.linalg.cholesky(moment).flip(0, 1).contiguous()


def values(codes: torch.Tensor) -> torch.Tensor:
    return unpack_tcq4(pack_int4(codes), codes.shape[1]).float()


def cost(targets: torch.Tensor, codes: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return ((targets - values(codes)) @ factor).square().sum(1)


@pytest.mark.parametrize("feedback", [False, True])
def test_of_three_weights_no_sequence_is_better(feedback):
    targets = 37 * torch.randn(20, 3)
    factor = torch.randn(3, 3).triu() + 2 * torch.eye(3) if feedback else None
    codes = round_tcq4(targets, factor)
    every = torch.tensor(list(itertools.product(range(-8, 8), repeat=3)), dtype=torch.int8)
    factor = torch.eye(3) if factor is None else factor
    costs = ((targets[:, None] - values(every)) @ factor).square().sum(-1)
    torch.testing.assert_close(cost(targets, codes, factor), costs.amin(1))


def test_what_codes_stand_for_has_these_codes():
    codes = torch.randint(-8, 8, (4, 60), dtype=torch.int8)
    assert torch.equal(values(round_tcq4(values(codes))), values(codes))


def test_errors_are_made_up_for_behind_them():
    targets, factor = 37 * torch.randn(8, 100), root(100)
    with_feedback = cost(targets, round_tcq4(targets, factor), factor).mean()
    assert with_feedback < 0.8 * cost(targets, round_tcq4(targets), factor).mean()


def test_rows_do_not_meet():
    targets, factor = 37 * torch.randn(7, 50), root(50)
    codes, order = round_tcq4(targets, factor), torch.randperm(7)
    assert torch.equal(round_tcq4(targets[order], factor), codes[order])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        assert torch.equal(round_tcq4(targets, factor), codes)
    finally:
        torch.set_num_threads(threads)


def test_no_rows():
    assert round_tcq4(torch.zeros(0, 40)).shape == (0, 40)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"targets must be \(N, K\) fp32, not \(3,\)"):
        round_tcq4(torch.zeros(3))
    with pytest.raises(ValueError, match=r"root must be \(4, 4\) fp32, not \(3, 3\)"):
        round_tcq4(torch.zeros(2, 4), torch.eye(3))


def test_compiles_as_one_op():
    torch.library.opcheck(torch.ops.viditq.round_tcq4.default, (37 * torch.randn(2, 6), root(6)))


@SHAPES
@pytest.mark.parametrize("feedback", [False, True])
def test_kernel_interpreted(rows, features, feedback):
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled, not interpreted, here")
    from viditq.ops.round_tcq4.triton import round_tcq4 as kernel

    targets, factor = 37 * torch.randn(rows, features), root(features) if feedback else None
    assert torch.equal(kernel(targets, factor), reference.round_tcq4(targets, factor))


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "features"), [(1, 2), (70, 33), (64, 1152)])
@pytest.mark.parametrize("feedback", [False, True])
def test_kernel_on_cuda(rows, features, feedback):
    """Sums are taken in another order, so here and there a path wins that costs as much."""
    targets, factor = 37 * torch.randn(rows, features), root(features)
    given = factor if feedback else None
    ours = round_tcq4(targets.cuda(), None if given is None else given.cuda()).cpu()
    theirs = reference.round_tcq4(targets, given)
    assert (ours == theirs).float().mean() > 0.97
    own = factor if feedback else torch.eye(features)
    torch.testing.assert_close(
        cost(targets, ours, own), cost(targets, theirs, own), rtol=1e-2, atol=0
    )
