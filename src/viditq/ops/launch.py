"""What the launches of Triton kernels share, above all a short way to a kernel compiled before.

At every call Triton works out what each argument means for compilation, which takes the processor
as long as a small kernel takes the GPU. :func:`launch` finds what was compiled by a key of its own.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["contiguous", "dense", "launch", "multiprocessors"]

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int | float, ...],
    constants: tuple[Any, ...],
    options: Mapping[str, Any],
    *,
    described: tuple[Any, ...] = (),
) -> None:
    """Run a kernel on the device of its first tensor.

    Args:
        kernel: its parameters are ``described``, ``tensors``, ``numbers`` and ``constants``, in
            this order.
        programs: how many.
        tensors: pointers to it.
        numbers: values known at run time.
        constants: hashable; with ``options`` and the types of the tensors they decide what is
            compiled.
        options: of the compilation.
        described: TMA descriptors.
    """
    device = tensors[0].device  # pyright: ignore[reportOptionalMemberAccess]
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, numbers, constants, options, described=described)
        return
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    kinds += [None if d is None else (d.base.dtype, *d.block_shape) for d in described]
    # Numbers as they are: which of them Triton tells apart, ones and multiples of 16, is its own.
    key = (id(kernel), device.index, *kinds, numbers, constants, *options.values())
    compiled = _compiled.get(key)
    arguments = (*described, *tensors, *numbers, *constants)
    if compiled is None:
        # The interpreter compiles nothing and returns nothing.
        _compiled[key] = kernel[(programs,)](*arguments, **options)
    else:
        compiled[(programs, 1, 1)](*arguments)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """``tensor``, copied if it has gaps."""
    return None if tensor is None else tensor.contiguous()


def dense(tensor: Tensor) -> Tensor:
    """The same values with neighbours in the last dimension side by side; rows may have gaps."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; of the CPU, where kernels are interpreted, one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
