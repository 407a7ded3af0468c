"""Grids: where the values lie that codes stand for, ``value = scale · code + offset``.

One scale per row (an output channel of a weight, a token of an activation), or one per group of
columns within a row (Q-DiT, arXiv 2406.17343). With a zero point the grid is moved by a whole
number of steps to where the values are (ViDiT-Q, arXiv 2406.02540, Eq. 2: ``offset = -scale ·
zero_point``, here with codes around zero); it always holds 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from viditq.formats import Format
from viditq.quantizers.rounding import round_nearest

__all__ = ["Grid", "fake_quantize", "grid_between", "minmax_grid", "search_grid"]

SHRINK = tuple(1.0 - 0.02 * i for i in range(26))
"""Fractions of the min–max range that a search tries: 1 … 0.5."""

AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Values that a search holds at once: what a processor's cache has room for, or what keeps a GPU
busy."""


@dataclass(frozen=True)
class Grid:
    """The grid of each row of a matrix (N, K), or several grids (…, N) of it.

    Attributes:
        scale: (…, N), or (…, N, ⌈K/group⌉) with groups.
        offset: of the same shape, or ``None``.
        group: columns that share a scale, 0 for all.
    """

    scale: Tensor
    offset: Tensor | None = None
    group: int = 0

    def steps(self, features: int) -> Tensor:
        """(…, N, 1) or (…, N, K): the scale under each column."""
        return self._spread(self.scale, features)

    def offsets(self, features: int) -> Tensor | None:
        """(…, N, 1) or (…, N, K): the offset under each column."""
        return None if self.offset is None else self._spread(self.offset, features)

    def codes(self, values: Tensor, fmt: Format) -> Tensor:
        """(N, K) float -> (…, N, K) the nearest codes."""
        offset = self.offsets(values.shape[-1])
        moved = values if offset is None else values - offset
        return round_nearest(moved, self.steps(values.shape[-1]), fmt)

    def values(self, codes: Tensor) -> Tensor:
        """(…, N, K) codes -> (…, N, K) in the dtype of the scale."""
        features = codes.shape[-1]
        values = codes.to(self.scale.dtype) * self.steps(features)
        offset = self.offsets(features)
        return values if offset is None else values + offset

    def split(self, sizes: Sequence[int]) -> list["Grid"]:
        """The grids of consecutive rows, ``sizes`` of them each."""
        scales = self.scale.split(list(sizes))
        offsets = [None] * len(sizes) if self.offset is None else self.offset.split(list(sizes))
        return [Grid(*part, self.group) for part in zip(scales, offsets, strict=True)]

    def _spread(self, x: Tensor, features: int) -> Tensor:
        if not self.group:
            return x[..., None]
        return x.repeat_interleave(self.group, -1)[..., :features]


def minmax_grid(values: Tensor, fmt: Format, *, group: int = 0, zero_point: bool = False) -> Grid:
    """The grid that just holds all values of each row (or group) of ``values`` (N, K)."""
    low, high = _extremes(values, group)
    return grid_between(low, high, fmt, group=group, zero_point=zero_point)


def search_grid(
    values: Tensor, fmt: Format, importance: Tensor, *, group: int = 0, zero_point: bool = False
) -> Grid:
    """The grid with the smallest squared error among shrunken min–max grids, row by row.

    Args:
        values: (N, K) float.
        fmt: format of the codes.
        importance: (K,) what the squared error in each column counts.
        group: columns that share a scale.
        zero_point: whether the grid may be moved.
    """
    kind = {"group": group, "zero_point": zero_point}
    fractions = torch.tensor(SHRINK, device=values.device)
    at_once = AT_ONCE["cuda" if values.is_cuda else "cpu"] // len(fractions)
    found: list[Grid] = []
    for part in values.split(max(1, at_once // max(1, values.shape[1]))):
        low, high = _extremes(part, group)
        tried = fractions.view(-1, *[1] * low.ndim)
        grids = grid_between(tried * low, tried * high, fmt, **kind)
        error = (part - grids.values(grids.codes(part, fmt))).square_() * importance
        best = fractions[_grouped(error, group).sum(-1).argmin(0)]
        found.append(grid_between(best * low, best * high, fmt, **kind))
    scale = torch.cat([grid.scale for grid in found])
    offsets = [grid.offset for grid in found if grid.offset is not None]
    return Grid(scale, torch.cat(offsets) if offsets else None, group)


def fake_quantize(x: Tensor, fmt: Format, *, group: int = 0, zero_point: bool = False) -> Tensor:
    """(M, K) float -> (M, K): each token's values on its own min–max grid."""
    grid = minmax_grid(x, fmt, group=group, zero_point=zero_point)
    return grid.values(grid.codes(x, fmt))


def grid_between(
    low: Tensor, high: Tensor, fmt: Format, *, group: int = 0, zero_point: bool = False
) -> Grid:
    """The grid that spans ``low`` ≤ 0 to ``high`` ≥ 0; a span of nothing gets scale 1."""
    if not zero_point:
        scale = torch.maximum(-low, high) / fmt.qmax
        return Grid(torch.where(scale > 0, scale, torch.ones_like(scale)), None, group)
    scale = (high - low) / (fmt.qmax - fmt.qmin)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Grid(scale, (low / scale).round() * scale - fmt.qmin * scale, group)


def _extremes(values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of each row or group, 0 included; fp32."""
    grouped = _grouped(values.to(torch.float32), group)
    return grouped.amin(-1).clamp_max(0.0), grouped.amax(-1).clamp_min(0.0)


def _grouped(x: Tensor, group: int) -> Tensor:
    """(…, K) -> (…, ⌈K/group⌉, group), filled up with zeros; as it is without groups."""
    if not group:
        return x
    return functional.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
