"""``round_columns``: what each column loses is what those behind it are rounded for."""

import pytest
import torch

from viditq.ops import round_columns
from viditq.ops.round_columns import reference

# One column, an odd number, a whole block; one row, more than a program's.
SHAPES = pytest.mark.parametrize(("size", "rows"), [(1, 1), (7, 3), (33, 17), (128, 40)])
FORMS = pytest.mark.parametrize("descend", [False, True], ids=["gptq", "descend"])
SCALES = pytest.mark.parametrize("per_weight", [False, True], ids=["row", "weight"])
LOW, HIGH = -7, 7


def problem(size: int, rows: int, descend: bool, per_weight: bool):
    x = torch.randn(4 * size, size) @ torch.randn(size, size)
    moment = x.T @ x / len(x) + 0.01 * torch.eye(size)
    upper = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    target = 2 * torch.randn(size, rows)
    scale = 0.2 + torch.rand((size, rows) if per_weight else (rows,))
    old = torch.randint(LOW, HIGH + 1, (size, rows)).float() if descend else None
    return target, moment if descend else upper, scale, LOW, HIGH, old


def one_by_one(target, factor, scale, low, high, old=None):
    """The definition, entry by entry, in fp64."""
    target, factor, scale = target.double(), factor.double(), scale.double()
    codes, moved = torch.zeros_like(target), torch.zeros_like(target)
    for n in range(target.shape[1]):
        for j in range(len(target)):
            s = scale[n] if scale.ndim == 1 else scale[j, n]
            r = target[j, n] - factor[:j, j] @ moved[:j, n]
            start = 0.0 if old is None else old[j, n].double()
            by = s if old is None else factor[j, j] * s
            codes[j, n] = (r / by + start).round().clamp(low, high)
            left = (r - s * codes[j, n]) / factor[j, j]
            moved[j, n] = left if old is None else s * (codes[j, n] - start)
    return codes, moved


def assert_near(mine, wanted) -> None:
    """A sum in another order may round a code to the other side, and all that follow it."""
    same = (mine[0].cpu() == wanted[0].cpu()).all(0)
    assert same.float().mean() > 0.9 or (~same).sum() <= 1
    torch.testing.assert_close(
        mine[1].cpu()[:, same].double(), wanted[1].cpu()[:, same].double(), rtol=1e-3, atol=1e-3
    )


@SHAPES
@FORMS
@SCALES
def test_reference_is_the_definition(size, rows, descend, per_weight):
    given = problem(size, rows, descend, per_weight)
    assert_near(round_columns(*given), one_by_one(*given))


def test_inputs_stay():
    given = problem(33, 17, True, False)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in given]
    round_columns(*given)
    for a, b in zip(given, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_below_the_diagonal_nothing_is_looked_at():
    target, factor, *rest = problem(33, 17, False, False)
    spoilt = torch.where(torch.ones_like(factor).tril(-1).bool(), float("nan"), factor)
    for mine, wanted in zip(
        round_columns(target, spoilt, *rest), round_columns(target, factor, *rest), strict=True
    ):
        assert torch.equal(mine, wanted)


def test_shapes_are_checked():
    target, factor, scale, *rest = problem(7, 3, False, False)
    with pytest.raises(ValueError, match=r"factor must be \(7, 7\), not \(6, 7\)"):
        round_columns(target, factor[1:], scale, *rest)
    with pytest.raises(ValueError, match=r"scale must be \(3,\) or \(7, 3\), not \(2,\)"):
        round_columns(target, factor, scale[1:], *rest)
    with pytest.raises(ValueError, match=r"old must be \(7, 3\), not \(6, 3\)"):
        round_columns(target, factor, scale, LOW, HIGH, target[1:])


@SHAPES
@FORMS
@SCALES
def test_kernel_interpreted(size, rows, descend, per_weight):
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled, not interpreted, here")
    from viditq.ops.round_columns.triton import round_columns as kernel

    target, factor, scale, low, high, old = problem(size, rows, descend, per_weight)
    # A block of a larger matrix, and no zeros below the diagonal to lean on.
    factor = torch.nn.functional.pad(factor.triu() + 9 * torch.ones_like(factor).tril(-1), (0, 3))
    factor = factor[:, :size]
    assert_near(
        kernel(target, factor, scale, old, low, high),
        reference.round_columns(target, factor, scale, old, low, high),
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "rows"), [(1, 1), (33, 17), (128, 1000), (100, 4099)])
@FORMS
@SCALES
def test_kernel_on_cuda(size, rows, descend, per_weight):
    given = problem(size, rows, descend, per_weight)
    there = [a.cuda() if isinstance(a, torch.Tensor) else a for a in given]
    mine = round_columns(*there)
    assert_near(mine, round_columns(*given))
    for first, again in zip(mine, round_columns(*there), strict=True):
        assert torch.equal(first, again)
