"""From the balanced weights of layers that read one input to codes, as a plan says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from viditq.formats import TCQ4, Format
from viditq.plan import LayerPlan
from viditq.quantizers.grid import Grid, minmax_grid, search_grid
from viditq.quantizers.low_rank import split_low_rank
from viditq.quantizers.packing import levels
from viditq.quantizers.rounding import round_gptq
from viditq.quantizers.two_sided import round_two_sided

__all__ = ["GPTQ_SWEEPS", "Rounded", "round_weights"]

GPTQ_SWEEPS = 4
"""After four rounds of coordinate descent a fifth gains less than 0.02 dB."""

TWO_SIDED_SWEEPS = 2
"""In each of the parts that rows are rounded in."""


@dataclass(frozen=True)
class Rounded:
    """A balanced weight after rounding.

    Attributes:
        codes: (N, K) int8, or fp8.
        grid: what the codes stand for.
        fmt: of the codes.
        branch: ``down`` (r, K) and ``up`` (N, r) bf16, or ``None``.
    """

    codes: Tensor
    grid: Grid
    fmt: Format
    branch: tuple[Tensor, Tensor] | None = None

    def dequantized(self) -> Tensor:
        """(N, K) fp32."""
        values = self.grid.values(levels(self.codes, self.fmt))
        if self.branch is None:
            return values
        down, up = self.branch
        return values + up.float() @ down.float()


def round_weights(
    weights: Sequence[Tensor],
    plan: LayerPlan,
    moment: Tensor,
    gradients: Sequence[Tensor] | None = None,
    *,
    sweeps: int = GPTQ_SWEEPS,
) -> list[Rounded]:
    """Round the balanced weights of layers that read one input.

    Args:
        weights: (N_i, K) fp32 each.
        plan: format, granularity and rounding of all.
        moment: (K, K) second moment or covariance of the balanced input.
        gradients: as for :func:`quantize_readers`.
        sweeps: rounds of coordinate descent after GPTQ.
    """
    fmt = plan.weight_format
    if plan.rounding == "two_sided" and gradients is not None:
        grids = [_grid(weight, plan, moment) for weight in weights]
        scales = [_under_each(grid, plan, moment) for grid in grids]
        found = round_two_sided(
            weights, scales, fmt, moment, gradients, sweeps=min(sweeps, TWO_SIDED_SWEEPS)
        )
        return [
            Rounded(codes, grid if plan.group else Grid(scale), fmt)
            for grid, (codes, scale) in zip(grids, found, strict=True)
        ]
    sizes = [len(weight) for weight in weights]
    branches: list[tuple[Tensor, Tensor] | None] = [None] * len(weights)
    if plan.rank:
        parts = [split_low_rank(weight, plan.rank) for weight in weights]
        branches, weights = [part[:2] for part in parts], [part[2] for part in parts]
    weight = torch.cat(list(weights))
    grid = _grid(weight, plan, moment)
    if plan.rounding == "nearest":
        codes = grid.codes(weight, fmt)
    else:
        offset = grid.offsets(weight.shape[1])
        moved = weight if offset is None else weight - offset
        scale = _under_each(grid, plan, moment)
        codes, scale = round_gptq(moved, scale, fmt, moment, sweeps=sweeps)
        grid = grid if plan.group else replace(grid, scale=scale)
    grids = grid.split(sizes)
    return [
        Rounded(own, part, fmt, branch)
        for own, part, branch in zip(codes.split(sizes), grids, branches, strict=True)
    ]


def _under_each(grid: Grid, plan: LayerPlan, moment: Tensor) -> Tensor:
    """The scale as rounding takes it: (N,), or (N, K) with groups."""
    return grid.steps(len(moment)) if plan.group else grid.scale


def _grid(weight: Tensor, plan: LayerPlan, moment: Tensor) -> Grid:
    fmt, kind = plan.weight_format, {"group": plan.group, "zero_point": plan.zero_point}
    if fmt is TCQ4:
        return Grid(torch.ones(len(weight), device=weight.device))  # rounding finds its own
    if plan.clip:
        return search_grid(weight, fmt, moment.diagonal().to(weight.dtype), **kind)
    return minmax_grid(weight, fmt, **kind)
