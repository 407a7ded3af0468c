"""CUDA graphs for a whole transformer: its kernels launched as one, without Python in between.

Quantized and fused, a block of a small model takes a GPU less time than Python takes to launch its
kernels. :func:`capture_` lets a module record the kernels of a call as a CUDA graph and replay them
at every further call with the same kind of inputs: same structure, shapes and types, and the same
values of whatever is no tensor. Results are those of the recorded kernels, bit by bit.

A graph reads inputs and parameters where they were. Inputs are copied there; if a parameter has
moved, a submodule was exchanged (by a LoRA, say) or a hook was put on or taken off, all graphs are
dropped and the next call records anew. Whatever a forward does in Python, hooks included, it does
while it is recorded only. A graph keeps the memory of one call to itself.

Declined, and left to the module's own forward: calls that may need gradients, calls under
``torch.compile`` or inside another capture, tensors that are not on one GPU, and forwards that
cannot be captured, because they wait for the device, say; a warning names the reason.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from viditq.errors import InputError

__all__ = ["capture_", "is_captured", "release_"]

_LOG = logging.getLogger("viditq")

WARM_UP = 2
"""Calls before the recorded one, in which kernels are compiled and weights settle."""


def capture_(module: nn.Module) -> None:
    """Let ``module`` replay its calls as CUDA graphs from now on; :func:`release_` undoes it.

    Best done last: what changes the module afterwards costs another recording.

    Raises:
        InputError: something else has wrapped the module's forward.
    """
    own = module.__dict__.get("forward")
    if own is not None and not isinstance(own, _Graphed):
        raise InputError(
            f"{type(module).__name__} has a forward that something else has wrapped already, such "
            "as offloading; take that off before capture_."
        )
    if own is None:
        module.forward = _Graphed(module)


def release_(module: nn.Module) -> None:
    """Let ``module`` run as before :func:`capture_`, and give back what its graphs keep."""
    if isinstance(module.__dict__.get("forward"), _Graphed):
        del module.forward


def is_captured(module: nn.Module) -> bool:
    """Whether ``module`` has a CUDA graph of some call, and replays it."""
    own = module.__dict__.get("forward")
    return isinstance(own, _Graphed) and any(own.graphs.values())


class _Graphed:
    """In the place of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forget()

    def forget(self) -> None:
        """Drop all graphs."""
        self.graphs: dict[Hashable, _Graph | None] = {}  # None for what cannot be captured
        self.look: Callable[[], list[int]] | None = None
        self.seen: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))

        def forward(leaves: Sequence[Any]) -> Any:
            args, kwargs = tree_unflatten(list(leaves), spec)
            return type(self.module).forward(self.module, *args, **kwargs)

        if not _may_capture(leaves):
            return forward(leaves)
        if self.look is None or self.look() != self.seen:
            self.forget()
        key = (spec, *map(_kind, leaves))
        if key not in self.graphs:
            self.graphs[key] = _record(forward, leaves, type(self.module).__name__)
            self.look = _watch(self.module)
            self.seen = self.look()
        graph = self.graphs[key]
        return forward(leaves) if graph is None else graph(leaves)

    def __getstate__(self) -> dict[str, Any]:
        # A copy records for itself.
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])


class _Graph:
    """One recorded call: ``leaves`` are its inputs and hold the addresses that it reads."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, leaves: Sequence[Any], outputs: Sequence[Any], spec: Any
    ) -> None:
        self.graph, self.leaves, self.outputs, self.spec = graph, leaves, outputs, spec

    def __call__(self, leaves: Sequence[Any]) -> Any:
        for mine, given in zip(self.leaves, leaves, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        self.graph.replay()
        # The next replay writes over them.
        outputs = [out.clone() if isinstance(out, Tensor) else out for out in self.outputs]
        return tree_unflatten(outputs, self.spec)


def _may_capture(leaves: Sequence[Any]) -> bool:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and len({tensor.device for tensor in tensors}) == 1
        and tensors[0].is_cuda
        and all(isinstance(leaf, Tensor | Hashable) for leaf in leaves)
        and not torch.cuda.is_current_stream_capturing()
    )


def _kind(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _record(
    forward: Callable[[Sequence[Any]], Any], given: Sequence[Any], name: str
) -> "_Graph | None":
    """A graph of ``forward(given)``; None if it cannot be captured."""
    # Tensors of inference mode could not be written outside it, at a later call.
    with torch.inference_mode(False), torch.no_grad():
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in given]
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        with torch.cuda.device(device):
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    forward(leaves)
            torch.cuda.current_stream().wait_stream(stream)
            try:
                with torch.cuda.graph(graph):
                    result = forward(leaves)
            except RuntimeError as error:
                _LOG.warning("%s runs without a CUDA graph: %s", name, error)
                _end_capture_of_random_numbers(device)
                return None
    outputs, spec = tree_flatten(result)
    return _Graph(graph, leaves, outputs, spec)


def _end_capture_of_random_numbers(device: torch.device) -> None:
    """After a capture that failed torch's generator refuses to draw until another one has ended."""
    anything = torch.zeros(1, device=device)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        anything.zero_()


def _watch(module: nn.Module) -> Callable[[], list[int]]:
    """What a graph relies on, as numbers that change with it, found in fractions of a millisecond.

    Addresses of parameters and buffers, identities of submodules, and how many hooks there are.
    """
    modules = list(module.modules())
    tensors = [(own, name) for m in modules for own in (m._parameters, m._buffers) for name in own]
    children = [(m._modules, name) for m in modules for name in m._modules]
    sizes = [
        own
        for m in modules
        for own in (m._parameters, m._modules, m._forward_hooks, m._forward_pre_hooks)
    ]

    def look() -> list[int]:
        found = [own.get(name) for own, name in tensors]
        return [
            *(0 if tensor is None else tensor.data_ptr() for tensor in found),
            *(id(own.get(name)) for own, name in children),
            *map(len, sizes),
        ]

    return look
