"""What calibration does otherwise for a large model, so that it takes minutes and not hours.

It has thousands of tokens in a call, so fewer calls do. On a GPU its linear layers multiply in
bf16, as they will when it is used; statistics are summed in fp32 either way. Activations are
computed again in the backward pass instead of kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["GRADIENT_EVERY", "INPUT_EVERY", "gram", "halved_if_large", "is_large"]

LARGE = 1 << 28
"""Parameters of a large model, at least."""

INPUT_EVERY, GRADIENT_EVERY = 2, 4
"""One call in so many is looked at for the inputs of layers, and for gradients."""


def is_large(model: nn.Module) -> bool:
    """Whether ``model`` has more parameters than :data:`LARGE`."""
    return sum(parameter.numel() for parameter in model.parameters()) > LARGE


@contextmanager
def halved_if_large(model: nn.Module) -> Iterator[None]:
    """Let a large fp32 model on a GPU multiply in bf16."""
    parameter = next(model.parameters())
    halved = parameter.is_cuda and is_large(model)
    with torch.autocast(parameter.device.type, torch.bfloat16, enabled=halved):
        yield


def gram(x: Tensor) -> Tensor:
    """``xᵀx`` (K, K) fp32 of ``x`` (M, K); on a GPU of 16-bit products where the model has those.

    Products of 16-bit numbers are exact in fp32, in which they are summed.
    """
    kind = x.device.type
    if x.is_cuda and torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(x.T, x, out_dtype=torch.float32)
        x = x.to(torch.float32)
        return x.T @ x
