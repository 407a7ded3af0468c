"""Static per-tensor quantization: the naive baseline's activation quantizer.

One scale for every token, timestep and CFG branch, fixed at calibration. It exists so that others
can be compared with it; nothing fast is built on it.
"""

import torch
from torch import Tensor

__all__ = ["quantize_tensor"]


def quantize_tensor(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """(M, K) float, scale () fp32 -> codes (M, K) int8, saturated at ±qmax, NaN as 0."""
    qmax = 2 ** (bits - 1) - 1
    steps = x.to(torch.float32) / scale.clamp_min(torch.finfo(torch.float32).tiny)
    codes = steps.round().clamp(-qmax, qmax).nan_to_num(nan=0.0)
    return codes.to(torch.int8, memory_format=torch.contiguous_format)
