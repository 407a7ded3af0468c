"""What the launches of Triton kernels share, above all a short way to a kernel compiled before.

At every call Triton works out what each argument means for compilation, which takes the processor
longer than a small kernel takes the GPU. :func:`launch` finds what was compiled by a key of its own
and hands it to Triton's launcher. That would also encode each TMA descriptor anew at every launch;
that is done once. Declined: Triton's launch hooks, from the second launch on.
"""

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from inspect import getclosurevars
from itertools import chain
from typing import Any

import torch
from torch import Tensor

__all__ = ["Address", "Described", "contiguous", "dense", "launch", "multiprocessors"]

_compiled: dict[tuple[Any, ...], Any] = {}


class Address:
    """Stands for a tensor in a descriptor, and keeps no memory alive."""

    def __init__(self, pointer: int, dtype: torch.dtype) -> None:
        self.pointer, self.dtype = pointer, dtype

    def data_ptr(self) -> int:
        return self.pointer


class Described:
    """TMA descriptors of one launch, ``None`` where the kernel is to do without; to be kept for the
    next launch with the same addresses and shapes."""

    def __init__(self, *descriptors: Any) -> None:
        self.descriptors = descriptors
        self.kinds = tuple(
            None if d is None else (d.base.dtype, *d.block_shape) for d in descriptors
        )
        self._known: tuple[tuple[Any, ...], list[Any]] | None = None

    def expanded(
        self, expand: Callable[[Any, Any], list[Any]], wanted: tuple[Any, ...]
    ) -> list[Any]:
        """The launcher's arguments for them, by Triton's ``expand`` and what it wants to know of
        each that there is: made once for each kernel."""
        if self._known is None or self._known[0] is not wanted:
            own = iter(wanted)
            made = ([None] if d is None else expand(d, next(own)) for d in self.descriptors)
            self._known = wanted, [*chain.from_iterable(made)]
        return self._known[1]


NOTHING_DESCRIBED = Described()


def launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int | float, ...],
    constants: tuple[Any, ...],
    options: Mapping[str, Any],
    *,
    described: Described = NOTHING_DESCRIBED,
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
        described: TMA descriptors, the kernel's first parameters.
    """
    device = tensors[0].device  # pyright: ignore[reportOptionalMemberAccess]
    index = device.index
    if index is not None and index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, numbers, constants, options, described=described)
        return
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    # Numbers as they are: which of them Triton tells apart, ones and multiples of 16, is its own.
    key = (id(kernel), index, *kinds, described.kinds, numbers, constants)
    found = _compiled.get(key)
    if found is None:
        arguments = (*described.descriptors, *tensors, *numbers, *constants)
        compiled = kernel[(programs,)](*arguments, **options)
        if compiled is not None:  # The interpreter compiles nothing.
            way = _short_way(compiled.run)
            _compiled[key] = *way, compiled.function, compiled.packed_metadata
        return
    run, expand, wanted, function, metadata = found
    first = described.descriptors if expand is None else described.expanded(expand, wanted)
    stream = torch._C._cuda_getCurrentRawStream(index)
    arguments = (*first, *tensors, *numbers, *constants)
    run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)


def _short_way(run: Any) -> tuple[Any, Callable[[Any, Any], list[Any]] | None, tuple[Any, ...]]:
    """Triton's launcher ``run`` without the function around it that expands descriptors, the one
    that expands one, and what it wants to know of each; ``run`` itself and ``None`` if this Triton
    goes another way."""
    try:
        names = getclosurevars(run.launch)
        bare, wanted = names.nonlocals["launcher"], names.nonlocals["tensordesc_meta"]
        expand = names.globals["make_tensordesc_arg"]
    except (TypeError, KeyError):
        return run, None, ()
    run = copy(run)
    run.launch = bare
    return run, expand, tuple(wanted)


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
