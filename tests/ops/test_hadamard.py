"""The rotation is orthonormal, acts block by block, and is taken in fp32 or better."""

import pytest
import torch

from viditq.ops import block_hadamard
from viditq.ops.hadamard import hadamard_matrix

# Every block a plan may ask for up to a row of a real model; the law does not change above.
BLOCKS = pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512])


def matrix(block: int) -> torch.Tensor:
    return hadamard_matrix(block, device=torch.device("cpu"), dtype=torch.float64)


@BLOCKS
def test_orthonormal_and_symmetric(block):
    h = matrix(block)
    torch.testing.assert_close(h @ h.T, torch.eye(block).double(), rtol=0, atol=1e-13)
    assert torch.equal(h, h.T)
    assert torch.equal(h.abs(), torch.full_like(h, 1 / block**0.5))


# Several blocks, one block, a block below the row's own power of two, an odd number of blocks.
@pytest.mark.parametrize(("features", "block"), [(256, 128), (32, 32), (96, 16), (36, 4), (12, 2)])
def test_is_the_block_diagonal_matrix_and_its_own_inverse(features, block):
    x = torch.randn(3, 5, features, dtype=torch.float64)
    rotated = block_hadamard(x, block)
    whole = torch.block_diag(*[matrix(block)] * (features // block))
    torch.testing.assert_close(rotated, x @ whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(block_hadamard(rotated, block), x, rtol=0, atol=1e-12)


def test_spreads_one_outlier_over_its_block_alone():
    x = torch.zeros(1, 256)
    x[0, 130] = 1.0
    rotated = block_hadamard(x, 128)
    assert torch.all(rotated[0, :128] == 0)
    torch.testing.assert_close(rotated[0, 128:].abs(), torch.full((128,), 128**-0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rotated_in_fp32(dtype):
    x = torch.randn(7, 128).to(dtype)
    rotated = block_hadamard(x, 128)
    assert rotated.dtype == torch.float32
    assert torch.equal(rotated, block_hadamard(x.float(), 128))
    # fp16 overflows where the sum of a block does; fp32 does not.
    large = torch.full((1, 128), 6e4, dtype=torch.float16)
    assert torch.isfinite(block_hadamard(large, 128)).all()


@pytest.mark.parametrize("block", [0, 1])
def test_no_block_is_no_rotation(block):
    x = torch.randn(3, 7)
    assert torch.equal(block_hadamard(x, block), x)


def test_no_rows():
    assert block_hadamard(torch.empty(0, 8), 4).shape == (0, 8)


@pytest.mark.parametrize(("features", "block"), [(36, 8), (7, 2)])
def test_a_block_that_does_not_divide_the_row(features, block):
    with pytest.raises(ValueError, match=f"block {block} does not divide the {features}"):
        block_hadamard(torch.zeros(1, features), block)


@pytest.mark.parametrize("block", [-2, 3, 12])
def test_a_block_that_is_no_power_of_two(block):
    with pytest.raises(ValueError, match="power of two"):
        matrix(block)
