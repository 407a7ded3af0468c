"""Linear layers of a fused block: integer products where nothing is in the way.

A layer takes part when it is a :class:`~viditq.nn.QuantLinear` and nothing sits on it. A layer that
stayed float, one that a LoRA wraps, one with a hook or a forward of its own is called as a module
instead, with the float input that it would get without fusing. This is judged at every call, so
what is put on a layer counts at once, and what is taken off as well. (Compiled code keeps the
judgement of its compilation, as ``torch.compile`` does with all hooks.)
"""

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from viditq.blocks.inputs import Input, over_tokens
from viditq.blocks.joint import multiply, settle_
from viditq.nn import QuantLinear

__all__ = [
    "asks_for_a_gradient",
    "finish",
    "gains",
    "is_untouched",
    "prepare_",
    "read",
    "takes_codes",
]

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


def asks_for_a_gradient(*tensors: Tensor) -> bool:
    """Whether any of them does, from a place where gradients are recorded."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def takes_codes(layer: nn.Module) -> TypeGuard[QuantLinear]:
    """Whether a fused op may quantize this layer's input for it."""
    return is_untouched(layer, QuantLinear)


def gains(block: nn.Module, shared_inputs: Sequence[Sequence[str]]) -> bool:
    """Whether fusing ``block`` serves a layer of it and replaces nothing but its class's forward.

    Args:
        block: of a class that has a fused twin.
        shared_inputs: names in the block of layers that read the same tensor.
    """
    return (
        "forward" not in block.__dict__
        and any(takes_codes(layer) for layer in block.modules())
        and all(_balance_alike(block, names) for names in shared_inputs)
    )


def _balance_alike(block: nn.Module, names: Sequence[str]) -> bool:
    """Whether readers of one input whose plans are alike hold the same vectors and static scale.

    Conversion sees to it; a checkpoint from elsewhere may not. It is found out here, once: a look
    at the values at every call would wait for the device.
    """
    modules = dict(block.named_modules())
    first: dict[object, QuantLinear] = {}
    for layer in (modules[name] for name in names if name in modules):
        if takes_codes(layer):
            other = first.setdefault(layer.balancing, layer)
            if not all(
                _equal(getattr(layer, name), getattr(other, name))
                for name in ("center", "smooth", "input_scale")
            ):
                return False
    return True


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def read(x: Input, layers: Sequence[nn.Module]) -> list[Tensor]:
    """What each layer makes of ``x``; the input is quantized once, and multiplied once.

    Layers that balance or scale it differently have their own codes, and those with another weight
    format their own product.

    Returns:
        (*tokens, N_i) for each layer; views of a wider tensor where products are joint.
    """
    if len(layers) == 1 and takes_codes(layer := layers[0]):
        return [multiply(*x.codes(layer), [layer], x.dtype).view(*x.tokens, layer.out_features)]
    joint = _joint(layers)
    outputs: dict[int, Tensor] = {}
    if sum(map(len, joint.values())) < len(layers):
        values = x.values()
        for index, layer in enumerate(layers):
            if not takes_codes(layer):
                outputs[index] = layer(values)
    codes: dict[object, tuple[Tensor, Tensor]] = {}
    for key, indices in joint.items():
        readers: list[QuantLinear] = [layers[index] for index in indices]  # pyright: ignore
        if key[0] not in codes:
            codes[key[0]] = x.codes(readers[0])
        widths = [reader.out_features for reader in readers]
        y = multiply(*codes[key[0]], readers, x.dtype).view(*x.tokens, sum(widths))
        outputs.update(zip(indices, y.split_with_sizes(widths, -1), strict=True))
    return [outputs[index] for index in range(len(layers))]


def _joint(layers: Sequence[nn.Module]) -> dict[tuple[object, ...], list[int]]:
    """Which of the layers have one product, by balancing, weight format and dtype of the bias."""
    joint: dict[tuple[object, ...], list[int]] = {}
    for index, layer in enumerate(layers):
        if takes_codes(layer):
            bias = layer.operands[2]
            kind = None if bias is None else bias.dtype
            joint.setdefault((layer.balancing, layer.plan.weight, kind), []).append(index)
    return joint


def prepare_(block: nn.Module, shared_inputs: Sequence[Sequence[str]]) -> None:
    """Lay weights that :func:`read` will multiply together side by side, in place.

    Args:
        block: with the layers.
        shared_inputs: names in the block of layers that read the same tensor, in the order in
            which they are read.
    """
    modules = dict(block.named_modules())
    for names in shared_inputs:
        layers: list[Any] = [modules[name] for name in names if name in modules]
        for indices in _joint(layers).values():
            settle_([layers[index] for index in indices])


def finish(x: Input, layer: nn.Module, residual: Tensor, gate: Tensor | None = None) -> Tensor:
    """``gate · layer(x) + residual``, like the residual (*tokens, N).

    The gate is (B, N) or has the dimensions of the residual; those of tokens may end in ones.
    """
    if takes_codes(layer):
        rows = residual.flatten(0, -2)
        gates = gate if gate is None or gate.ndim == 2 else gate.flatten(0, -2)
        y = multiply(*x.codes(layer), [layer], x.dtype, gate=gates, residual=rows)
        return y.view(*x.tokens, layer.out_features)
    y = layer(x.values())
    return ((y if gate is None else over_tokens(gate) * y) + residual).to(x.dtype)
