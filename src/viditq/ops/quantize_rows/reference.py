"""Dynamic per-token quantization with balancing in the same pass: the definition.

``x' = (x / smooth) H``, ``scale = amax|x'| / qmax`` per row, ``code = round(x' / scale)`` with ties
to even (ViDiT-Q, arXiv 2406.02540, Eq. 2, symmetric). A row of zeros has scale 0 and codes 0; a
row that holds inf or NaN has a non-finite scale and codes 0, so that it comes out as NaN.
"""

import torch
from torch import Tensor

from viditq.ops.hadamard.reference import block_hadamard

__all__ = ["balance_rows", "quantize_rows"]


def balance_rows(x: Tensor, smooth: Tensor | None, hadamard: int) -> Tensor:
    """``(x / smooth) H``: (M, K) any float -> (M, K) fp32 (fp64 stays fp64)."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    if smooth is not None:
        x = x / smooth
    return block_hadamard(x, hadamard)


def quantize_rows(
    x: Tensor, smooth: Tensor | None, hadamard: int, bits: int
) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8 and scale (M,) fp32."""
    qmax = 2 ** (bits - 1) - 1
    balanced = balance_rows(x, smooth, hadamard)
    if balanced.numel() == 0:
        scale = balanced.new_zeros(balanced.shape[0], dtype=torch.float32)
        return balanced.to(torch.int8), scale
    scale = (balanced.abs().amax(-1) / qmax).to(torch.float32)
    steps = balanced / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = steps.round().clamp(-qmax, qmax).nan_to_num(nan=0.0)
    return codes.to(torch.int8, memory_format=torch.contiguous_format), scale
