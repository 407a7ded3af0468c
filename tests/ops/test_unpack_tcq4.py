"""Trellis-coded weights are what the definition says, on every device, and nearly normal."""

import pytest
import torch

from viditq.ops import pack_int4, unpack_tcq4, window_values
from viditq.ops.unpack_tcq4 import reference

# One byte, an odd row, a row that is no power of two, one that takes two programs.
SHAPES = pytest.mark.parametrize(("rows", "features"), [(1, 2), (3, 7), (5, 36), (2, 2600)])


def random_codes(rows: int, features: int) -> torch.Tensor:
    return torch.randint(-8, 8, (rows, features), dtype=torch.int8)


@SHAPES
def test_is_the_definition(rows, features):
    codes = random_codes(rows, features)
    weights = unpack_tcq4(pack_int4(codes), features)
    assert (weights.dtype, weights.shape) == (torch.int8, (rows, features))
    for row in range(rows):
        window = 14 << 4 | 12
        for column in range(features):
            window = (window << 4 | int(codes[row, column]) & 15) & 0xFFF
            word = (window * 3432601039 + 1231741627) % 2**32
            expected = (sum(word.to_bytes(4, "little")) - 510) // 4
            assert weights[row, column] == expected


def test_a_code_decides_on_its_own_weight_and_the_next_two():
    codes = torch.zeros((16, 9), dtype=torch.int8)
    codes[:, 4] = torch.arange(-8, 8)
    weights = unpack_tcq4(pack_int4(codes), 9)
    changes = (weights != weights[:1]).any(0)
    assert changes.tolist() == [False] * 4 + [True] * 3 + [False] * 2


def test_values_are_nearly_normal():
    values = window_values().double()
    assert abs(values.mean()) < 1
    assert 36 < values.std() < 38
    kurtosis = ((values - values.mean()) / values.std()).pow(4).mean()
    assert 2.5 < kurtosis < 3


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"must be \(N, 4\) for 8 features, not \(2, 3\)"):
        unpack_tcq4(torch.zeros((2, 3), dtype=torch.uint8), 8)


def test_compiles_as_one_op():
    packed = pack_int4(random_codes(4, 36))
    torch.library.opcheck(torch.ops.viditq.unpack_tcq4.default, (packed, 36))


@SHAPES
def test_kernel_interpreted(rows, features):
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled, not interpreted, here")
    from viditq.ops.unpack_tcq4.triton import unpack_tcq4 as kernel

    packed = pack_int4(random_codes(rows, features))
    assert torch.equal(kernel(packed, features), reference.unpack_tcq4(packed, features))
    every = pack_int4(random_codes(2 * rows, features))[::2]  # rows with gaps
    assert torch.equal(kernel(every, features), reference.unpack_tcq4(every, features))


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "features"), [(1, 2), (3, 7), (1152, 4608), (100, 2600)])
def test_kernel_on_cuda(rows, features):
    packed = pack_int4(random_codes(rows, features))
    assert torch.equal(unpack_tcq4(packed.cuda(), features).cpu(), unpack_tcq4(packed, features))
