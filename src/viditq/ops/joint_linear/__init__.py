"""``joint_linear``: several layers that read one input, as one integer product."""

from collections.abc import Sequence

import torch
from torch import Tensor

from viditq.ops.joint_linear import reference
from viditq.ops.joint_linear.reference import side_by_side
from viditq.ops.registration import register_op

__all__ = ["joint_linear", "side_by_side"]


def _shape(
    x: Tensor,
    x_scale: Tensor,  # noqa: ARG001
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],  # noqa: ARG001
    biases: Sequence[Tensor],  # noqa: ARG001
    gate: Tensor | None,  # noqa: ARG001
    residual: Tensor | None,  # noqa: ARG001
    packed: bool,  # noqa: ARG001
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape[0], sum(weight.shape[0] for weight in weights), dtype=dtype)


# Its product is an op too, with kernels of its own.
_joint_linear = register_op(
    "joint_linear(Tensor x, Tensor x_scale, Tensor[] weights, Tensor[] scales, Tensor[] biases, "
    "Tensor? gate, Tensor? residual, bool packed, ScalarType dtype) -> Tensor",
    reference.joint_linear,
    _shape,
)


def joint_linear(
    x: Tensor,
    x_scale: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    dtype: torch.dtype = torch.float32,
    *,
    packed: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Linear layers on the same integer codes, their outputs side by side.

    Args:
        x: (M, K) int8 codes of the activations.
        x_scale: (M,) fp32 per token, or () fp32 for one static scale.
        weights: (N_i, K) int8 codes each, or packed as for :func:`viditq.ops.int4_linear`.
        scales: (N_i,) fp32 each.
        biases: (N_i,) any float each, or none at all.
        dtype: of the result.
        packed: whether weights have 4 bits.
        gate: (B, ΣN_i), see :func:`viditq.ops.int8_linear`.
        residual: (M, ΣN_i), any float, added last.

    Returns:
        (M, ΣN_i) ``dtype``.
    """
    if len(scales) != len(weights) or len(biases) not in (0, len(weights)):
        raise ValueError(
            f"{len(weights)} weights have {len(scales)} scales and {len(biases)} biases"
        )
    return _joint_linear(
        x, x_scale, list(weights), list(scales), list(biases), gate, residual, packed, dtype
    )
