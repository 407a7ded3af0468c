"""Linear layers of a fused block: integer products where nothing is in the way.

A layer takes part when it is a :class:`~viditq.nn.QuantLinear` and nothing sits on it. A layer that
stayed float, one that a LoRA wraps, one with a hook or a forward of its own is called as a module
instead, with the float input that it would get without fusing. This is judged at every call, so
what is put on a layer counts at once, and what is taken off as well. (Compiled code keeps the
judgement of its compilation, as ``torch.compile`` does with all hooks.)
"""

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from torch import Tensor, nn

from viditq.blocks.inputs import Input
from viditq.blocks.joint import multiply
from viditq.nn import QuantLinear

__all__ = ["balancing", "finish", "is_untouched", "read", "takes_codes"]

T = TypeVar("T", bound=nn.Module)


def is_untouched(module: nn.Module, kind: type[T]) -> TypeGuard[T]:
    """Whether ``module`` is of exactly this class, with the forward of the class and no hooks."""
    return (
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        # Offloading and caching put a wrapped forward on the instance.
        and "forward" not in module.__dict__
    )


def takes_codes(layer: nn.Module) -> TypeGuard[QuantLinear]:
    """Whether a fused op may quantize this layer's input for it."""
    return is_untouched(layer, QuantLinear)


def balancing(layer: QuantLinear) -> tuple[str, str, float | None, int]:
    """What decides how an input is quantized: layers that read it and agree here share codes."""
    plan = layer.plan
    return plan.activation, plan.granularity, plan.smooth, layer.hadamard


def read(x: Input, layers: Sequence[nn.Module]) -> list[Tensor]:
    """What each layer makes of ``x``; the input is quantized once, and multiplied once.

    Layers that balance or scale it differently have their own codes, and those with another weight
    format their own product.

    Returns:
        (B, S, N_i) for each layer; views of a wider tensor where products are joint.
    """
    joint: dict[tuple[object, ...], list[int]] = {}
    outputs: dict[int, Tensor] = {}
    values: Tensor | None = None
    for index, layer in enumerate(layers):
        if takes_codes(layer):
            bias = None if layer.bias is None else layer.bias.dtype
            key = (balancing(layer), layer.plan.weight, bias)
            joint.setdefault(key, []).append(index)
        else:
            values = x.values() if values is None else values
            outputs[index] = layer(values)
    codes: dict[object, tuple[Tensor, Tensor]] = {}
    for key, indices in joint.items():
        readers: list[QuantLinear] = [layers[index] for index in indices]  # pyright: ignore
        if key[0] not in codes:
            codes[key[0]] = x.codes(readers[0])
        y = multiply(*codes[key[0]], readers, x.dtype).unflatten(0, x.tokens)
        parts = y.split([reader.out_features for reader in readers], -1)
        outputs.update(zip(indices, parts, strict=True))
    return [outputs[index] for index in range(len(layers))]


def finish(x: Input, layer: nn.Module, residual: Tensor, gate: Tensor | None = None) -> Tensor:
    """``gate · layer(x) + residual``: residual (B, S, N), gate (B, N) -> (B, S, N)."""
    if takes_codes(layer):
        rows = residual.flatten(0, 1)
        y = multiply(*x.codes(layer), [layer], x.dtype, gate=gate, residual=rows)
        return y.unflatten(0, x.tokens)
    y = layer(x.values())
    return (y if gate is None else gate[:, None] * y) + residual
