"""What the ops that quantize rows share: their result, and the check of what tells how."""

import torch
from torch import Tensor

__all__ = ["check", "empty_result"]


def empty_result(x: Tensor, features: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes (M, features) int8 and scale to be written: (M,) fp32, (0,) if one is given."""
    codes = x.new_empty(x.shape[0], features, dtype=torch.int8)
    return codes, x.new_empty(x.shape[0] if scale is None else 0, dtype=torch.float32)


def check(
    smooth: Tensor | None, bits: int, scale: Tensor | None, center: Tensor | None, features: int
) -> None:
    """ValueError unless these can quantize rows of ``features``."""
    for name, vector in (("smooth", smooth), ("center", center)):
        if vector is not None and vector.shape != (features,):
            raise ValueError(f"{name} must have shape ({features},), not {tuple(vector.shape)}")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 … 8, not {bits}")
    if scale is not None and (scale.ndim or scale.dtype != torch.float32):
        raise ValueError(
            f"scale must be one torch.float32, (), not {scale.dtype} {tuple(scale.shape)}"
        )
