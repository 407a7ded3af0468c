"""Rounding a weight to codes: to the nearest, or so that the layer's output moves least.

:func:`round_gptq` is GPTQ (arXiv 2210.17323, Algorithm 1, columns in descending order of their
second moment) followed by two steps that only ever lower the same objective
``Σ_rows (w - s·c) M (w - s·c)ᵀ``: coordinate descent over the codes, and the closed-form scale for
the codes found. They need no gradient and no further data. Rows are rounded independently;
:mod:`viditq.quantizers.two_sided` minds what one row's error means for another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional

from viditq.formats import Format
from viditq.ops import round_columns

__all__ = ["Metric", "round_gptq", "round_nearest"]

GPTQ_BLOCK = 128
"""Columns whose error is spread lazily together (GPTQ, section 3.3)."""


def round_nearest(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """(N, K) float, (N,), (N, 1) or (N, K) scale -> (N, K) codes: int8, ties to even, or fp8."""
    steps = scale.to(weight.dtype)
    codes = weight / (steps[:, None] if steps.ndim == 1 else steps)
    if not fmt.is_integer:
        return codes.clamp(fmt.qmin, fmt.qmax).to(torch.float8_e4m3fn)
    return codes.round_().clamp_(fmt.qmin, fmt.qmax).to(torch.int8)


@dataclass(frozen=True)
class Metric:
    """What an error in a row of numbers costs, ``e M eᵀ``, made ready for elimination.

    Attributes:
        order: (K,) entries in descending order of their second moment.
        moment: (K, K) fp32, damped, in that order.
        root: (K, K) fp32, upper triangular, ``M = R Rᵀ``.
    """

    order: Tensor
    moment: Tensor
    root: Tensor

    @classmethod
    def of(cls, moment: Tensor, damping: float = 0.01) -> "Metric":
        """Factorize ``moment`` (K, K); see :func:`round_gptq` for ``damping``.

        A covariance that was taken in fp32 may have negative eigenvalues, as large as the rounding
        of the mean it lost: then the damping grows until they are gone.
        """
        rising = moment.diagonal().argsort(descending=True).flip(0)
        # The factorization needs fp64; what follows is sums of a few hundred terms, and fp32 will
        # do. A lower factor of the reverse order is an upper one of the order.
        damped = moment[rising][:, rising].double()
        diagonal = damped.diagonal()
        size, share = diagonal.abs().mean() + 1e-30, 0.0
        for growth in range(12):
            diagonal += (damping * 10**growth - share) * size
            share = damping * 10**growth
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                return cls(rising.flip(0), _reversed(damped), _reversed(factor))
        raise AssertionError("the moment is not finite")

    @cached_property
    def gptq_blocks(self) -> list[tuple[Tensor, Tensor]]:
        """For each block ``b`` of columns, ``R_bb⁻¹`` (B, B) and, transposed, ``R_ab R_bb⁻¹``
        (B, A) of the columns ``a`` before it."""
        features = len(self.root)
        count = -(-features // GPTQ_BLOCK)
        missing = count * GPTQ_BLOCK - features
        root = functional.pad(self.root, (0, missing, 0, missing))
        root.diagonal()[features:] = 1.0
        columns = root.unflatten(1, (count, GPTQ_BLOCK)).transpose(0, 1)
        own = columns.unflatten(1, (count, GPTQ_BLOCK)).diagonal(dim1=0, dim2=1).movedim(-1, 0)
        identity = torch.eye(GPTQ_BLOCK, device=root.device).expand_as(own)
        inverse = torch.linalg.solve_triangular(own, identity, upper=True)
        inverse = inverse.mT.contiguous().mT  # so that a column is read in one piece
        shares, found = columns @ inverse, []
        for b, start in enumerate(range(0, features, GPTQ_BLOCK)):
            size = min(GPTQ_BLOCK, features - start)
            found.append((inverse[b, :size, :size], shares[b, :start, :size].T))
        return found

    @cached_property
    def descent_blocks(self) -> list[tuple[Tensor, Tensor]]:
        """For each block ``b`` of columns, ``M_bb`` (B, B) and ``M_cb`` (C, B) of the columns ``c``
        behind it."""
        found = []
        for start in range(0, len(self.moment), GPTQ_BLOCK):
            rest = self.moment[start:, start : start + GPTQ_BLOCK]
            own, behind = rest[:GPTQ_BLOCK], rest[GPTQ_BLOCK:]
            found.append((own.T, behind))  # the same; a column is read in one piece
        return found


def _reversed(x: Tensor) -> Tensor:
    """(K, K) fp64 -> (K, K) fp32, rows and columns from the last to the first."""
    return x.float().flip(0, 1)


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
        fmt: an integer format.
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
