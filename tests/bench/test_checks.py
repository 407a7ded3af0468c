"""A wrong result is told from a rounded one."""

import pytest
import torch

from viditq.bench.checks import CheckFailed, equal_codes, near, within_twice


@pytest.fixture
def codes():
    return torch.randint(-127, 127, (100, 100), dtype=torch.int8)


def test_codes_may_differ_at_ties(codes):
    assert equal_codes(codes, codes) == "codes equal"
    other = codes.clone()
    other[0, :3] += 1
    assert equal_codes(other, codes) == "0.030% of the codes differ by 1"


@pytest.mark.parametrize(("share", "by"), [(0.01, 1), (0.0001, 2)])
def test_codes_that_are_wrong(codes, share, by):
    other = codes.clamp(-120, 120)
    expected = other.clone()
    other.view(-1)[: int(share * other.numel())] += by
    with pytest.raises(CheckFailed, match=r"wrong result: .* codes differ"):
        equal_codes(other, expected)


def test_within_twice():
    exact = torch.randn(50, 50, dtype=torch.float64)
    rounded = exact.to(torch.bfloat16)
    assert within_twice(rounded, rounded, exact) == "error 1.00× torch's"
    assert within_twice(exact.float(), exact.float(), exact.float().double()) == "exact to fp32"
    with pytest.raises(CheckFailed, match="wrong result"):
        within_twice(rounded * 1.02, rounded, exact)


def test_near():
    exact = torch.randn(50, 50)
    assert near(exact * 1.01, exact, 0.02) == "relative error 0.01"
    with pytest.raises(CheckFailed, match=r"relative error 0\.05, allowed 0\.02"):
        near(exact * 1.05, exact, 0.02)


@pytest.mark.parametrize(
    "check", [lambda x, y: near(x, y, 0.1), lambda x, y: within_twice(x, y, y)]
)
def test_nan_and_another_shape_are_wrong(check):
    exact = torch.randn(4, 4, dtype=torch.float64)
    broken = exact.clone()
    broken[0, 0] = float("nan")
    for result in (broken, exact[:1], exact.T[:, :1]):
        with pytest.raises(CheckFailed):
            check(result, exact)
