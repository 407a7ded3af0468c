"""Several layers that read one input as a single integer product.

Their weights are laid side by side in memory once, and each layer's parameter becomes a view of its
part: nothing is stored twice, and checkpoints stay as they are. What moves parameters one by one
(``.to()``, copying, loading) takes them apart again; the next product puts them together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from viditq.nn import QuantLinear
from viditq.ops import int4_linear, int8_linear
from viditq.quantizers import unpack

__all__ = ["joined", "multiply"]


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
    weight = joined([layer.weight for layer in layers])
    scale = joined([layer.scale for layer in layers])
    bias = None if first.bias is None else joined([layer.bias for layer in layers])
    if first.plan.weight == "int4":
        product = int4_linear
    else:
        product = int8_linear
        weight = unpack(weight, first.plan.weight_format, first.in_features)
    return product(codes, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(N_i, …) parameters as one (ΣN_i, …) tensor, which they become views of.

    Under ``torch.compile`` memory has no addresses, so the compiled code copies them together: some
    microseconds, and always right. So are parameters that were made under inference mode, which
    cannot be moved.
    """
    if len(parts) == 1:
        return parts[0]
    if torch.compiler.is_compiling() or parts[0].is_inference():
        return torch.cat(list(parts))
    if not _adjacent(parts):
        _lay_side_by_side(parts)
    rows = sum(len(part) for part in parts)
    return parts[0].as_strided((rows, *parts[0].shape[1:]), parts[0].stride())


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether the parts follow each other without a gap in one allocation."""
    address = parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != address:
            return False
        address += part.nbytes
    # Allocations of their own may be neighbours too; then the first ends before the last part does.
    storage = parts[0].untyped_storage()
    return address <= storage.data_ptr() + storage.nbytes()


def _lay_side_by_side(parts: Sequence[Tensor]) -> None:
    # A parameter must not become an inference tensor because it was first used by a sampler.
    with torch.inference_mode(False), torch.no_grad():
        whole = torch.cat([part.data for part in parts])
        for part, own in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = own
