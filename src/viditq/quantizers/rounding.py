"""Rounding a weight to codes: to the nearest, or so that the layer's output moves least.

:func:`round_gptq` is GPTQ (arXiv 2210.17323, Algorithm 1, columns in descending order of their
second moment) followed by two steps that only ever lower the same objective
``Σ_rows (w - s·c) M (w - s·c)ᵀ``: coordinate descent over the codes, and the closed-form scale for
the codes found. They need no gradient and no further data. Rows are rounded independently;
:mod:`viditq.quantizers.two_sided` minds what one row's error means for another.
"""

from dataclasses import dataclass
from functools import cached_property

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
    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """For each block ``b`` of columns, ``R_bb⁻¹`` (B, B) and ``R_ab R_bb⁻¹`` (A, B) of the
        columns ``a`` before it."""
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
            found.append((inverse[b, :size, :size], shares[b, :start, :size]))
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
    codes, nearest = _gptq(w, s, fmt, metric.blocks), (w / s).round_().clamp_(fmt.qmin, fmt.qmax)
    # Clipping now and then leads GPTQ astray. With a, b the residuals of the two,
    # a M a - b M b = (a - b) M (a + b).
    difference = (m @ (s * (nearest - codes)) * (2 * w - s * (codes + nearest))).sum(0)
    codes = torch.where(difference > 0, nearest, codes)
    for _ in range(sweeps):
        s = _refit_scale(w, codes, s, m) if s.ndim == 1 else s
        codes = _descend(w, codes, s, fmt, m)
    return codes[order.argsort()].T.to(torch.int8).contiguous(), s if s.ndim == 1 else scale


def _gptq(w: Tensor, scale: Tensor, fmt: Format, blocks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Column by column, each one's error made up for in those not yet rounded.

    With ``M = R Rᵀ`` an error ``e`` costs ``|e R|²``, and what the columns before a block have lost
    is made up for by moving the block's targets by ``(Σ e_i R_ib) R_bb⁻¹``: GPTQ's elimination
    without the inverse of ``M`` (QuIP, arXiv 2307.13304, section 4.1).

    Args:
        w: (K, N).
        scale: (N,) or (K, N).
        fmt: format of the codes.
        blocks: as :class:`Metric` has them.

    Returns:
        codes (K, N), float.
    """
    errors, codes = torch.empty_like(w), torch.empty_like(w)
    for number, (upper, shares) in enumerate(blocks):
        start = number * GPTQ_BLOCK
        block = slice(start, start + len(upper))
        own = scale if scale.ndim == 1 else scale[block]
        target = torch.addmm(w[block], shares.T, errors[:start])
        codes[block], _ = round_columns(target, upper, own, fmt.qmin, fmt.qmax)
        torch.addcmul(w[block], own.expand_as(target), codes[block], value=-1, out=errors[block])
    return codes


def _descend(w: Tensor, codes: Tensor, scale: Tensor, fmt: Format, moment: Tensor) -> Tensor:
    """One sweep of coordinate descent: each column to its optimum given all the others.

    Shapes as in :func:`_gptq`; ``moment`` is (K, K).
    """
    codes = codes.clone()
    gradient = moment @ (w - scale * codes)
    for start in range(0, len(w), GPTQ_BLOCK):
        block = slice(start, min(start + GPTQ_BLOCK, len(w)))
        own = scale if scale.ndim == 1 else scale[block]
        factor = moment[block, block].T  # the same; a column is read in one piece
        codes[block], moved = round_columns(
            gradient[block], factor, own, fmt.qmin, fmt.qmax, codes[block]
        )
        gradient[block.stop :].addmm_(moment[block.stop :, block], moved, alpha=-1)
    return codes


def _refit_scale(w: Tensor, codes: Tensor, scale: Tensor, moment: Tensor) -> Tensor:
    """The scale that minimizes the objective for these codes: ``(w M c)/(c M c)``."""
    mc = moment @ codes
    top, bottom = (mc * w).sum(0), (mc * codes).sum(0)
    fitted = top / bottom.clamp_min(torch.finfo(w.dtype).tiny)
    return torch.where((bottom > 0) & (fitted > 0), fitted, scale)
