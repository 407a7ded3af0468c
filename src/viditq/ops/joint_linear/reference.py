"""One product of several layers that read the same input: their weights one after the other.

``y = [y_1, …, y_n]`` with ``y_i`` as :mod:`viditq.ops.int8_linear` or ``int4_linear`` defines it.
Parts that lie side by side in memory already are multiplied where they are, others are copied
together first: compiled code knows no addresses, so that only an op can see the difference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from viditq.ops.int4_linear import int4_linear
from viditq.ops.int8_linear import int8_linear

__all__ = ["joint_linear", "side_by_side"]


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """(N_i, …) -> a view (ΣN_i, …) if they follow each other without a gap in one allocation."""
    first, rows = parts[0], 0
    address = first.data_ptr()
    for part in parts:
        if part.data_ptr() != address:
            return None
        address += part.nbytes
        rows += part.shape[0]
    # Allocations of their own may be neighbours too; then the first ends before the last part does.
    storage = first.untyped_storage()
    if address > storage.data_ptr() + storage.nbytes():
        return None
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _whole(parts: Sequence[Tensor]) -> Tensor:
    view = side_by_side(parts)
    return torch.cat(list(parts)) if view is None else view


def joint_linear(
    x: Tensor,
    x_scale: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    gate: Tensor | None,
    residual: Tensor | None,
    packed: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.joint_linear` -> (M, ΣN_i) ``dtype``."""
    product = int4_linear if packed else int8_linear
    bias = _whole(biases) if biases else None
    weight, scale = _whole(weights), _whole(scales)
    return product(x, x_scale, weight, scale, bias, dtype, gate=gate, residual=residual)
