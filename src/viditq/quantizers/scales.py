"""Weight scales: one per output channel, and the error that codes make.

Min–max takes the largest magnitude (ViDiT-Q, arXiv 2406.02540, Eq. 2, symmetric: no clipping
error); :mod:`viditq.quantizers.grid` searches for smaller ones. What counts is how far rounding
moves the layer's *output*, ``(w - ŵ) M (w - ŵ)ᵀ`` with ``M`` the second moment of the input.
"""

from torch import Tensor

from viditq.formats import Format
from viditq.quantizers.grid import minmax_grid

__all__ = ["minmax_scale", "output_error"]


def minmax_scale(weight: Tensor, fmt: Format) -> Tensor:
    """(N, K) float -> (N,) fp32 scale; a row of zeros gets 1."""
    return minmax_grid(weight, fmt).scale


def output_error(weight: Tensor, codes: Tensor, scale: Tensor, moment: Tensor) -> Tensor:
    """Mean squared error of each output channel over the inputs that ``moment`` describes.

    Args:
        weight: (N, K) float.
        codes: (N, K) int8.
        scale: (N,) fp32.
        moment: (K, K) second moment of the input.

    Returns:
        (N,) in the dtype of ``weight``.
    """
    residual = weight - codes.to(weight.dtype) * scale.to(weight.dtype)[:, None]
    return ((residual @ moment.to(weight.dtype)) * residual).sum(1)
