"""What the launches of Triton kernels share, above all a short way to a kernel compiled before.

At every call Triton works out what each argument means for compilation, which takes the processor
longer than a small kernel takes the GPU. :func:`launch` finds what was compiled by a key of its own
and hands it to Triton's launcher. Declined: Triton's launch hooks, from the second launch on.
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
        constants: hashable; with the types of the tensors they decide what is compiled.
        options: of the compilation; they follow from the constants.
        described: TMA descriptors.
    """
    device = tensors[0].device  # pyright: ignore[reportOptionalMemberAccess]
    index = device.index
    if index is not None and index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, numbers, constants, options, described=described)
        return
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    kinds += [None if d is None else (d.base.dtype, *d.block_shape) for d in described]
    # Numbers as they are: which of them Triton tells apart, ones and multiples of 16, is its own.
    key = (id(kernel), index, *kinds, numbers, constants)
    found = _compiled.get(key)
    arguments = (*described, *tensors, *numbers, *constants)
    if found is None:
        compiled = kernel[(programs,)](*arguments, **options)
        if compiled is not None:  # The interpreter compiles nothing.
            _compiled[key] = compiled.run, compiled.function, compiled.packed_metadata
        return
    run, function, metadata = found
    stream = torch._C._cuda_getCurrentRawStream(index)
    run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)


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
