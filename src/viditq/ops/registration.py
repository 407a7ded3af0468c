"""Making a function an operator of torch, with one implementation for each kind of device.

The reference runs on every device that has nothing faster, and under every dispatch mode; the
shape function is what ``torch.compile`` and the meta device use. On CUDA an op can run its Triton
kernel, or the one written for Hopper where the chip is one and the kernel takes the arguments (each
op's ``triton`` and ``hopper`` module). These are imported when the op first runs them.

Defined through the library interface rather than ``torch.library.custom_op``, whose per-call checks
cost as much as a small layer.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["BACKENDS", "fastest_backend", "register_op", "use_backend"]

BACKENDS = ("hopper", "triton", "reference")
"""From the fastest to the slowest. The first that can run does, of those from the one on that
:func:`use_backend` asks for."""

_LIBRARY = torch.library.Library("viditq", "DEF")
_LOG = logging.getLogger("viditq")
_forced: ContextVar[str | None] = ContextVar("viditq_backend", default=None)


def register_op(
    schema: str,
    reference: Callable[..., Any],
    shape: Callable[..., Any],
    *,
    kernels: str | None = None,
    cuda: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``viditq::<name>``.

    Args:
        schema: name and signature in torch's schema language; the first argument is a tensor on the
            device that computes, and the op must not write its inputs.
        reference: the definition in plain torch.
        shape: the same signature, returning empty tensors.
        kernels: package with a ``triton`` or a ``hopper`` module, or both, that hold a function of
            the op's name and signature; ``hopper`` also ``takes``, which says whether it can
            compute these arguments.
        cuda: in place of ``kernels``, the same signature built on what torch has on CUDA; it runs
            there unless the reference is asked for.

    Returns:
        The operator, or a function that calls it or, if nothing watches, what it would call.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"viditq::{name}", shape, lib=_LIBRARY)
    if kernels is not None:

        def on_cuda(x: Tensor, *rest: Any) -> Any:
            for takes, compute in _implementations(x.device, kernels, name, _forced.get()):
                if takes is None or takes(x, *rest):
                    return compute(x, *rest)
            return reference(x, *rest)

        _LIBRARY.impl(name, on_cuda, "CUDA")
    elif cuda is not None:

        def unless_reference(*arguments: Any) -> Any:
            return (reference if _forced.get() == "reference" else cuda)(*arguments)

        _LIBRARY.impl(name, unless_reference, "CUDA")
    operator = getattr(torch.ops.viditq, name).default
    if kernels is None:
        return operator

    def call(x: Tensor, *rest: Any) -> Any:
        # The way through the dispatcher takes the processor as long as the rest of a launch.
        if torch.compiler.is_compiling() or not x.is_cuda or _is_watched(x, rest):
            return operator(x, *rest)
        return on_cuda(x, *rest)

    return call


def _is_watched(x: Tensor, rest: tuple[Any, ...]) -> bool:
    """Whether anything but plain computation is to happen: gradients, which the dispatcher warns
    that there are none of, tracing, subclasses, dispatch modes."""
    if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in (x, *rest)):
        return True
    return (
        type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
    )


def fastest_backend(device: torch.device) -> str:
    """The first of :data:`BACKENDS` that can run on ``device``."""
    if device.type != "cuda" or find_spec("triton") is None:
        return "reference"
    return "hopper" if torch.cuda.get_device_capability(device)[0] == 9 else "triton"


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run ops on CUDA with one backend of :data:`BACKENDS`, to use, test or time it.

    An op that has no such kernel takes the next slower backend; a chip or machine that cannot run
    the backend at all is a :class:`RuntimeError` when an op runs.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _implementations(
    device: torch.device, kernels: str, name: str, forced: str | None
) -> list[tuple[Callable[..., bool] | None, Callable[..., Any]]]:
    """The kernels to try for an op, in order, each with what says whether it takes arguments."""
    modules = {b: import_module(f"{kernels}.{b}") for b in _order(device, kernels, forced)}
    # Triton's kernels take everything.
    return [((b == "hopper" and m.takes) or None, getattr(m, name)) for b, m in modules.items()]


def _order(device: torch.device, kernels: str, forced: str | None) -> tuple[str, ...]:
    """The backends with kernels to try for the ops in ``kernels``, the reference left out."""
    able = BACKENDS[BACKENDS.index(fastest_backend(device)) :]
    if forced is not None and forced not in able:
        raise RuntimeError(f"{device} cannot run the {forced} backend, only {', '.join(able)}.")
    able = [b for b in able if BACKENDS.index(b) >= BACKENDS.index(forced or BACKENDS[0])]
    order = [b for b in able if b == "reference" or find_spec(f"{kernels}.{b}") is not None]
    _LOG.info("%s on %s: %s", kernels, device, ", else ".join(order))
    return tuple(order[:-1])
