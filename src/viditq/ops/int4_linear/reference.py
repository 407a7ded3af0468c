"""W4A8 matrix product: unpack to int8 codes, then :mod:`viditq.ops.int8_linear`."""

import torch
from torch import Tensor

from viditq.ops.int8_linear.reference import int8_linear
from viditq.ops.pack.reference import unpack_int4

__all__ = ["int4_linear"]


def int4_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.int4_linear` -> (M, N) ``dtype``."""
    codes = unpack_int4(weight, x.shape[1])
    return int8_linear(x, x_scale, codes, scale, bias, gate, residual, dtype)
