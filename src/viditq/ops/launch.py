"""What the launches of Triton kernels share."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["dense", "multiprocessors"]


def dense(tensor: Tensor) -> Tensor:
    """The same values with neighbours in the last dimension side by side; rows may have gaps."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; of the CPU, where kernels are interpreted, one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
