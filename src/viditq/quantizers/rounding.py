"""Rounding a weight to codes: to the nearest, or so that the layer's output moves least.

:func:`round_gptq` is GPTQ (arXiv 2210.17323, Algorithm 1, columns in descending order of their
second moment) followed by two steps that only ever lower the same objective
``Σ_rows (w - s·c) M (w - s·c)ᵀ``: coordinate descent over the codes, and the closed-form scale for
the codes found. They need no gradient and no further data. Rows are rounded independently;
:mod:`viditq.quantizers.two_sided` minds what one row's error means for another.
"""

from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor

from viditq.formats import TCQ4, Format
from viditq.ops import round_columns
from viditq.quantizers.metric import GPTQ_BLOCK, Metric
from viditq.quantizers.trellis import round_trellis

__all__ = ["round_gptq", "round_in", "round_nearest"]


def round_nearest(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """(N, K) float, (N,), (N, 1) or (N, K) scale -> (N, K) codes: int8, ties to even, or fp8."""
    steps = scale.to(weight.dtype)
    codes = weight / (steps[:, None] if steps.ndim == 1 else steps)
    if not fmt.is_integer:
        return codes.clamp(fmt.qmin, fmt.qmax).to(torch.float8_e4m3fn)
    return codes.round_().clamp_(fmt.qmin, fmt.qmax).to(torch.int8)


def round_gptq(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    moment: Tensor,
    *,
    sweeps: int,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Second-order rounding; the damped objective is never above that of the nearest codes.

    Args:
        weight: (N, K) float.
        scale: (N,) fp32, where to start; or (N, K), the scale under each weight, which is kept.
        fmt: an integer format; for ``tcq4`` see :mod:`viditq.quantizers.trellis`, which needs
            neither ``scale`` nor ``sweeps``.
        moment: (K, K) second moment (or covariance) of the input.
        sweeps: rounds of coordinate descent with refitted scales; 0 for GPTQ alone.
        damping: added to the diagonal, as a share of its mean; more if ``moment`` asks for it.

    Returns:
        codes (N, K) int8 and the scale as it is now.
    """
    return round_in(weight, scale, fmt, Metric.of(moment, damping), sweeps)


def round_in(
    weight: Tensor, scale: Tensor, fmt: Format, metric: Metric, sweeps: int
) -> tuple[Tensor, Tensor]:
    """:func:`round_gptq` with the metric at hand."""
    if fmt is TCQ4:
        return round_trellis(weight, metric)
    # Weight and codes are held as (K, N), so that a column of the layer is contiguous.
    order, m = metric.order, metric.moment
    w, s = weight.float().T[order], scale.float()
    s = s if s.ndim == 1 else s.T[order]
    codes, nearest = _gptq(w, s, fmt, metric), (w / s).round_().clamp_(fmt.qmin, fmt.qmax)
    # Clipping now and then leads GPTQ astray. With a, b the residuals of the two,
    # a M a - b M b = (a - b) M (a + b).
    difference = (m @ (s * (nearest - codes)) * (2 * w - s * (codes + nearest))).sum(0)
    codes = torch.where(difference > 0, nearest, codes)
    for _ in range(sweeps):
        s = _refit_scale(w, codes, s, m) if s.ndim == 1 else s
        codes = _descend(w, codes, s, fmt, metric)
    return codes[order.argsort()].T.to(torch.int8).contiguous(), s if s.ndim == 1 else scale


def _gptq(w: Tensor, scale: Tensor, fmt: Format, metric: Metric) -> Tensor:
    """Column by column, each one's error made up for in those not yet rounded.

    With ``M = R Rᵀ`` an error ``e`` costs ``|e R|²``, and what the columns before a block have lost
    is made up for by moving the block's targets by ``(Σ e_i R_ib) R_bb⁻¹``: GPTQ's elimination
    without the inverse of ``M`` (QuIP, arXiv 2307.13304, section 4.1).

    Args:
        w: (K, N), columns in the metric's order.
        scale: (N,) or (K, N).
        fmt: format of the codes.
        metric: of K entries.

    Returns:
        codes (K, N), float.
    """
    errors, codes, start = torch.empty_like(w), [], 0
    for (factor, shares), own, steps in zip(
        metric.gptq_blocks, w.split(GPTQ_BLOCK), _steps(scale), strict=False
    ):
        target = torch.addmm(own, shares, errors[:start])
        found, _ = round_columns(target, factor, steps, fmt.qmin, fmt.qmax)
        after = start + len(own)
        torch.addcmul(own, steps.expand_as(own), found, value=-1, out=errors[start:after])
        codes.append(found)
        start = after
    return torch.cat(codes)


def _descend(w: Tensor, codes: Tensor, scale: Tensor, fmt: Format, metric: Metric) -> Tensor:
    """One sweep of coordinate descent: each column to its optimum given all the others.

    Shapes as in :func:`_gptq`.
    """
    gradient, found = metric.moment @ (w - scale * codes), []
    for (factor, behind), old, steps in zip(
        metric.descent_blocks, codes.split(GPTQ_BLOCK), _steps(scale), strict=False
    ):
        own, gradient = gradient[: len(old)], gradient[len(old) :]
        new, moved = round_columns(own, factor, steps, fmt.qmin, fmt.qmax, old)
        gradient.addmm_(behind, moved, alpha=-1)
        found.append(new)
    return torch.cat(found)


def _steps(scale: Tensor) -> Iterable[Tensor]:
    """The scale of each block of columns: (N,), the same for all, or its part of (K, N)."""
    return repeat(scale) if scale.ndim == 1 else scale.split(GPTQ_BLOCK)


def _refit_scale(w: Tensor, codes: Tensor, scale: Tensor, moment: Tensor) -> Tensor:
    """The scale that minimizes the objective for these codes: ``(w M c)/(c M c)``."""
    mc = moment @ codes
    top, bottom = (mc * w).sum(0), (mc * codes).sum(0)
    return torch.where(torch.minimum(top, bottom) > 0, top / bottom, scale)
