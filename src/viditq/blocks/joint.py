"""Several layers that read one input as a single integer product.

Their weights are laid side by side in memory once, and each layer's parameter becomes a view of its
part: nothing is stored twice, and checkpoints stay as they are. What moves parameters one by one
(``.to()``, copying, loading) takes them apart again; the next product puts them together, unless it
is compiled: that one copies them together every time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from viditq.nn import QuantLinear
from viditq.ops import int4_linear, int8_linear, joint_linear
from viditq.ops.joint_linear import side_by_side
from viditq.quantizers import unpack

__all__ = ["joined", "multiply", "settle_"]


def multiply(
    codes: Tensor,
    x_scale: Tensor,
    layers: Sequence[QuantLinear],
    dtype: torch.dtype,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The outputs of ``layers``, which have one weight format, side by side.

    Args:
        codes: (M, K) int8.
        x_scale: (M,) fp32, or () if it is static.
        layers: N_i out features each, all with a bias or none.
        dtype: of the result.
        gate: (B, ΣN_i), see :func:`viditq.ops.int8_linear`.
        residual: (M, ΣN_i).

    Returns:
        (M, ΣN_i) ``dtype``.
    """
    first = layers[0]
    if len(layers) == 1:
        return _product(codes, x_scale, first, *first.operands, dtype, gate, residual)
    weights, scales, biases = _parameters(layers)
    if torch.compiler.is_compiling() and first.plan.weight in ("int8", "int4"):
        packed = first.plan.weight == "int4"
        return joint_linear(
            codes,
            x_scale,
            weights,
            scales,
            biases,
            dtype,
            packed=packed,
            gate=gate,
            residual=residual,
        )
    weight, scale, bias = joined(weights), joined(scales), joined(biases) if biases else None
    return _product(codes, x_scale, first, weight, scale, bias, dtype, gate, residual)


def _product(
    codes: Tensor,
    x_scale: Tensor,
    layer: QuantLinear,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Of a weight that is stored as that of ``layer`` is."""
    if layer.plan.weight == "int4":
        return int4_linear(codes, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)
    if layer.plan.weight != "int8":
        weight = unpack(weight, layer.plan.weight_format, layer.in_features)
    return int8_linear(codes, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)


def settle_(layers: Sequence[QuantLinear]) -> None:
    """Lay the parameters of layers that a product takes together side by side, ahead of it.

    Compiled code multiplies what lies so where it is, but cannot move it.
    """
    for parts in _parameters(layers):
        if parts:
            joined(parts)


def _parameters(layers: Sequence[QuantLinear]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, scales and biases; no biases if the first has none."""
    weights, scales, biases = zip(*(layer.operands for layer in layers), strict=True)
    return list(weights), list(scales), [] if biases[0] is None else list(biases)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(N_i, …) parameters as one (ΣN_i, …) tensor, which they become views of.

    Parameters that were made under inference mode cannot be moved; they are copied. So are those of
    compiled code, for which memory has no addresses.
    """
    if len(parts) == 1:
        return parts[0]
    if torch.compiler.is_compiling() or parts[0].is_inference():
        return torch.cat(list(parts))
    view = side_by_side(parts)
    return _laid_side_by_side(parts) if view is None else view


def _laid_side_by_side(parts: Sequence[Tensor]) -> Tensor:
    # A parameter must not become an inference tensor because it was first used by a sampler.
    with torch.inference_mode(False), torch.no_grad():
        together = torch.cat([part.data for part in parts])
        for part, own in zip(parts, together.split([len(part) for part in parts]), strict=True):
            part.data = own
    return together
