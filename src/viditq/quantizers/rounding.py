"""Rounding a weight to codes: to the nearest, or so that the layer's output moves least.

:func:`round_gptq` is GPTQ (arXiv 2210.17323, Algorithm 1, columns in descending order of their
second moment) followed by two steps that only ever lower the same objective
``Σ_rows (w - s·c) M (w - s·c)ᵀ``: coordinate descent over the codes, and the closed-form scale for
the codes found. They need no gradient and no further data.
"""

import torch
from torch import Tensor

from viditq.formats import Format

__all__ = ["round_gptq", "round_nearest"]

GPTQ_BLOCK = 128
"""Columns whose error is spread lazily together (GPTQ, section 3.3)."""

FP64_FEATURES = 2048
"""Up to this many input features the factorization is done in fp64."""


def round_nearest(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """(N, K) float, (N,) scale -> (N, K) int8 codes, ties to even."""
    codes = (weight / scale.to(weight.dtype)[:, None]).round()
    return codes.clamp(fmt.qmin, fmt.qmax).to(torch.int8)


def round_gptq(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    moment: Tensor,
    *,
    damping: float = 0.01,
    sweeps: int = 4,
) -> tuple[Tensor, Tensor]:
    """Second-order rounding.

    Args:
        weight: (N, K) float.
        scale: (N,) fp32, where to start.
        fmt: format of the codes.
        moment: (K, K) second moment (or covariance) of the input.
        damping: added to the diagonal, as a share of its mean.
        sweeps: rounds of coordinate descent with refitted scales; 0 for GPTQ alone.

    Returns:
        codes (N, K) int8 and scale (N,) fp32.
    """
    dtype = torch.float64 if weight.shape[1] <= FP64_FEATURES else torch.float32
    w, m = weight.to(dtype), moment.to(dtype).clone()
    diagonal = m.diagonal()
    diagonal += damping * diagonal.mean() + torch.finfo(dtype).tiny
    order = diagonal.argsort(descending=True)
    w, m, s = w[:, order], m[order][:, order], scale.to(dtype)
    codes = _gptq(w, s, fmt, m)
    for _ in range(sweeps):
        s = _refit_scale(w, codes, s, m)
        codes = _descend(w, codes, s, fmt, m)
    # Ties between float widths must not decide what is stored: the scale is fp32 from here on.
    return codes[:, order.argsort()].to(torch.int8), s.to(torch.float32)


def _gptq(w: Tensor, scale: Tensor, fmt: Format, moment: Tensor) -> Tensor:
    """Columns left to right, each one's error pushed into those not yet rounded."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    upper = torch.linalg.cholesky(inverse, upper=True)
    w, codes = w.clone(), torch.empty_like(w)
    for start in range(0, w.shape[1], GPTQ_BLOCK):
        end = min(start + GPTQ_BLOCK, w.shape[1])
        errors = w.new_empty(w.shape[0], end - start)
        for j in range(start, end):
            codes[:, j] = (w[:, j] / scale).round().clamp(fmt.qmin, fmt.qmax)
            error = (w[:, j] - scale * codes[:, j]) / upper[j, j]
            w[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    return codes


def _descend(w: Tensor, codes: Tensor, scale: Tensor, fmt: Format, moment: Tensor) -> Tensor:
    """One sweep of coordinate descent: each column to its optimum given all the others."""
    codes = codes.clone()
    gradient = (w - scale[:, None] * codes) @ moment
    for start in range(0, w.shape[1], GPTQ_BLOCK):
        end = min(start + GPTQ_BLOCK, w.shape[1])
        local, before = gradient[:, start:end].clone(), codes[:, start:end].clone()
        for j in range(start, end):
            step = (local[:, j - start] / (moment[j, j] * scale)).add_(codes[:, j])
            new = step.round_().clamp_(fmt.qmin, fmt.qmax)
            change = scale * (new - codes[:, j])
            codes[:, j] = new
            local -= change[:, None] * moment[j, start:end]
        moved = scale[:, None] * (codes[:, start:end] - before)
        gradient -= moved @ moment[start:end]
    return codes


def _refit_scale(w: Tensor, codes: Tensor, scale: Tensor, moment: Tensor) -> Tensor:
    """The scale that minimizes the objective for these codes: ``(w M c)/(c M c)``."""
    cm = codes @ moment
    top, bottom = (cm * w).sum(1), (cm * codes).sum(1)
    fitted = top / bottom.clamp_min(torch.finfo(w.dtype).tiny)
    return torch.where((bottom > 0) & (fitted > 0), fitted, scale)
