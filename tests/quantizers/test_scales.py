"""Weight scales: min–max never clips, the search never does worse than min–max."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from viditq.formats import FORMATS, INT4, INT8
from viditq.quantizers import minmax_scale, output_error, round_nearest, search_grid

ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def heavy_tailed(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """Cubed Gaussians: a few large weights in each row, so that clipping pays."""
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) ** 3


def second_moment(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows)


# One and several rows; K of one, odd, above a block of 128.
SHAPES = pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (5, 129)])


@SHAPES
@ALL
def test_minmax_is_within_half_a_scale_everywhere(fmt, n, k):
    w = heavy_tailed(n, k).double()
    scale = minmax_scale(w, fmt)
    assert (scale.dtype, scale.shape) == (torch.float32, (n,))
    codes = round_nearest(w, scale, fmt)
    error = (w - codes * scale.double()[:, None]).abs()
    assert torch.all(error <= scale.double()[:, None] / 2 * (1 + 1e-6))
    assert torch.equal(codes.abs().amax(1), torch.full((n,), fmt.qmax, dtype=torch.int8))


@ALL
def test_a_row_of_zeros_has_a_usable_scale(fmt):
    w = torch.zeros(2, 4)
    w[1, 2] = 3.0
    for scale in (minmax_scale(w, fmt), search_grid(w, fmt, torch.eye(4).diagonal()).scale):
        assert torch.all(scale > 0)
        assert not round_nearest(w, scale, fmt)[0].any()


def test_output_error_is_the_mean_over_the_tokens():
    w, x = heavy_tailed(3, 7).double(), torch.randn(50, 7).double()
    scale = minmax_scale(w, INT4)
    codes = round_nearest(w, scale, INT4)
    w_hat = codes.double() * scale.double()[:, None]
    expected = (x @ (w - w_hat).T).square().mean(0)
    torch.testing.assert_close(output_error(w, codes, scale, second_moment(x)), expected)


@given(
    n=st.integers(1, 3),
    k=st.sampled_from([1, 7, 32, 129]),
    fmt=st.sampled_from(list(FORMATS.values())),
    rank=st.integers(0, 40),
    seed=st.integers(0, 2**16),
)
def test_search_is_never_worse_than_minmax(n, k, fmt, rank, seed):
    """On its objective, errors of the columns weighted by their second moments; any rank of it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, k, generator=generator) * torch.rand(k, generator=generator) ** 4
    w, moment = heavy_tailed(n, k, seed), x.T @ x / max(rank, 1)
    own = torch.diag(moment.diagonal())

    def error(scale):
        return output_error(w, round_nearest(w, scale, fmt), scale, own)

    found, largest = search_grid(w, fmt, moment.diagonal()).scale, minmax_scale(w, fmt)
    assert torch.all(found > 0)
    assert torch.all(found <= largest)
    assert torch.all(error(found) <= error(largest) * (1 + 1e-5))


def test_search_clips_where_it_pays_and_not_where_it_does_not():
    w = heavy_tailed(4, 256)
    largest, found = minmax_scale(w, INT4), search_grid(w, INT4, torch.eye(256).diagonal()).scale
    assert torch.all(found < largest)
    # The column of the largest weight carries all the signal: clipping it would be an error.
    moment = torch.diag(torch.nn.functional.one_hot(w[0].abs().argmax(), 256).float())
    assert search_grid(w[:1], INT4, moment.diagonal()).scale.item() == pytest.approx(
        largest[0].item(), rel=0.2
    )


@pytest.mark.parametrize("exponent", [-20, 20])
def test_scales_follow_the_weight(exponent):
    w, factor = heavy_tailed(3, 33), 2.0**exponent
    assert torch.equal(minmax_scale(w * factor, INT8), minmax_scale(w, INT8) * factor)
    found, scaled = (search_grid(v, INT8, torch.ones(33)).scale for v in (w, w * factor))
    assert torch.equal(scaled, found * factor)
