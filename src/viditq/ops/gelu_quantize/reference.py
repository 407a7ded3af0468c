"""Activation function, balancing and quantization in one pass: the definition.

``y = act(x)``, or ``y = a · act(g)`` with ``x = [a, g]`` for the gated forms (GEGLU, SwiGLU; arXiv
2002.05202, in diffusers' order: the gate comes second), then :mod:`viditq.ops.quantize_rows`, all
in fp32. Columns of another tensor may come before the activated ones and are
quantized with them as they are (FLUX's single blocks read attention and GELU side by side).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from viditq.ops.quantize_rows.reference import quantize_rows

__all__ = ["activate_rows", "gelu_quantize"]


def activate_rows(x: Tensor, kind: str, gated: bool) -> Tensor:
    """(M, K), or (M, 2K) if gated, any float -> (M, K) fp32 (fp64 stays fp64)."""
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    value, gate = x.chunk(2, dim=1) if gated else (None, x)
    if kind == "silu":
        activated = F.silu(gate)
    else:
        activated = F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
    return activated if value is None else value * activated


def gelu_quantize(
    x: Tensor,
    kind: str,
    gated: bool,
    smooth: Tensor | None,
    hadamard: int,
    bits: int,
    left: Tensor | None = None,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the op: codes (M, L + K) int8 and scale (M,) fp32, (0,) if one is given."""
    y = activate_rows(x, kind, gated)
    if left is not None:
        y = torch.cat([left.to(y.dtype), y], 1)
    return quantize_rows(y, smooth, hadamard, bits, scale, center)
