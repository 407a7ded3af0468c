"""Balancing changes the basis of a layer's input and nothing else: exact before quantization."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.balancing import Balance, make_balance, random_signs
from viditq.diagnostics import incoherence


def magnitudes(k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, generator=generator) ** 4 * 100 + 1e-3


@given(
    # Odd, 3 × 12 (block 4), a power of two, a width with a block of 128 left over: 384 = 3 · 128.
    k=st.sampled_from([1, 7, 36, 64, 384]),
    alpha=st.none() | st.floats(0, 1),
    hadamard=st.sampled_from([0, 4, 64, 128]),
    centered=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_exact_in_fp64(k, alpha, hadamard, centered, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, k, dtype=torch.float64, generator=generator)
    w = torch.randn(3, k, dtype=torch.float64, generator=generator)
    center = torch.randn(k, generator=generator).double() if centered else None
    balance = make_balance(
        magnitudes(k, seed=seed),
        w.abs().amax(0),
        alpha=alpha,
        hadamard=hadamard,
        center=center,
        seed=seed,
    )
    y = balance.activation(x) @ balance.weight(w).T
    assert y.dtype == torch.float64
    if center is not None:
        y = y + center @ w.T
    torch.testing.assert_close(y, x @ w.T, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("alpha", "hadamard"), [(None, 16), (0.5, 0), (0.5, 16)])
def test_the_second_moment_is_that_of_the_balanced_input(alpha, hadamard):
    x = torch.randn(40, 48, dtype=torch.float64)
    balance = make_balance(magnitudes(48), torch.rand(48), alpha=alpha, hadamard=hadamard)
    balanced = balance.activation(x)
    torch.testing.assert_close(
        balance.second_moment(x.T @ x / 40), balanced.T @ balanced / 40, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(balance.activation(x.mean(0)), balanced.mean(0))


def test_differences_do_not_see_the_center():
    x, center = torch.randn(40, 48, dtype=torch.float64), torch.randn(48)
    balance = make_balance(magnitudes(48), torch.rand(48), alpha=0.5, hadamard=16, center=center)
    apart = balance.activation(x) - balance.activation(x.flip(0))
    torch.testing.assert_close(balance.difference(x - x.flip(0)), apart)
    assert torch.equal(balance.activation(center[None]), torch.zeros(1, 48))


def test_nothing_asked_nothing_done():
    balance = make_balance(magnitudes(7), torch.rand(7), alpha=None, hadamard=0)
    assert balance == Balance(None, 0)
    x = torch.randn(3, 7)
    assert torch.equal(balance.activation(x), x)
    assert torch.equal(balance.weight(x), x)


def test_a_rotation_without_smoothing_has_signs_alone():
    balance = make_balance(magnitudes(32), torch.rand(32), alpha=None, hadamard=32, seed=3)
    assert balance.smooth is not None
    assert torch.equal(balance.smooth, random_signs(32, 3))


def test_smoothing_and_signs_share_one_vector():
    steps, weight = magnitudes(32), torch.rand(32) + 0.1
    both = make_balance(steps, weight, alpha=0.5, hadamard=32).smooth
    scaling = make_balance(steps, weight, alpha=0.5, hadamard=0).smooth
    signs = make_balance(steps, weight, alpha=None, hadamard=32).smooth
    assert both is not None and scaling is not None and signs is not None
    assert torch.equal(both, scaling * signs)
    assert torch.all(scaling > 0)


def test_the_rotation_takes_a_constant_offset_apart():
    """What the signs are for: without them a constant row ends up in one coefficient per block."""
    x = torch.ones(1, 128)
    signs = random_signs(128, 0)
    assert incoherence(Balance(None, 128).activation(x)) > 100
    assert incoherence(Balance(signs, 128).activation(x)) < 10


def test_scaling_takes_static_outliers_and_rotation_those_of_a_moment():
    w_amax = torch.ones(128)
    static, sudden = torch.randn(64, 128), torch.randn(64, 128)
    static[:, :4] *= 40  # channels that stand out in every token
    sudden[::7, 50] += 60  # one that does so now and then

    def shrinks(x, alpha, hadamard):
        typical = x.abs().median(0).values
        balance = make_balance(typical, w_amax, alpha=alpha, hadamard=hadamard)
        return incoherence(balance.activation(x)) / incoherence(x)

    assert shrinks(static, 1.0, 0) < 0.3
    assert shrinks(sudden, 1.0, 0) > 0.9
    assert shrinks(sudden, None, 128) < 0.3
    assert shrinks(static + sudden, 1.0, 128) < 0.3
