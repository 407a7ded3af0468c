"""What the linear ops share: their signature, result shape and checks."""

import torch
from torch import Tensor

__all__ = ["ARGUMENTS", "check", "result"]

ARGUMENTS = (
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor scale, Tensor? bias, Tensor? gate, "
    "Tensor? residual, ScalarType dtype) -> Tensor"
)


def result(
    x: Tensor,
    x_scale: Tensor,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    gate: Tensor | None,  # noqa: ARG001
    residual: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype,
) -> Tensor:
    """An empty (M, N) tensor."""
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


def check(x: Tensor, weight: Tensor, gate: Tensor | None, residual: Tensor | None) -> None:
    """ValueError unless gate (B, N) and residual (M, N) fit x (M, K) and weight (N, …)."""
    rows, columns = x.shape[0], weight.shape[0]
    if gate is not None:
        if gate.ndim != 2 or gate.shape[1] != columns:
            raise ValueError(f"gate must have shape (B, {columns}), not {tuple(gate.shape)}")
        batches = gate.shape[0]  # len() of a tensor takes the processor ten times as long
        if rows and (not batches or rows % batches):
            raise ValueError(f"the {batches} rows of gate do not divide the {rows} of x")
    if residual is not None and residual.shape != (rows, columns):
        raise ValueError(f"residual must have shape {(rows, columns)}, not {tuple(residual.shape)}")
