"""``quantize_rows``: balance and quantize activations, one scale per token or in all."""

from torch import Tensor

from viditq.ops.quantize_rows import reference, signature
from viditq.ops.quantize_rows.reference import balance_rows
from viditq.ops.registration import register_op

__all__ = ["balance_rows", "quantize_rows"]


def _shape(
    x: Tensor,
    smooth: Tensor | None,  # noqa: ARG001
    hadamard: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    scale: Tensor | None,
    center: Tensor | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return signature.empty_result(x, x.shape[1], scale)


_quantize_rows = register_op(
    "quantize_rows(Tensor x, Tensor? smooth, int hadamard, int bits, Tensor? scale, "
    "Tensor? center=None) -> (Tensor, Tensor)",
    reference.quantize_rows,
    _shape,
    kernels="viditq.ops.quantize_rows",
)


def quantize_rows(
    x: Tensor,
    smooth: Tensor | None = None,
    hadamard: int = 0,
    bits: int = 8,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize each row of ``x`` with a scale of its own, or all with a given one.

    Args:
        x: (M, K), bf16, fp16 or fp32.
        smooth: (K,) fp32 per-channel vector that ``x`` is divided by, or ``None``.
        hadamard: block size of the rotation, a power of two that divides K; 0 for none.
        bits: 2 … 8; codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        scale: () fp32, static: what exceeds its range saturates. ``None`` for dynamic ones.
        center: (K,), any float, that is taken off ``x`` before all else, or ``None``.

    Returns:
        codes (M, K) int8 and scale (M,) fp32, or the one given, with ``x' ≈ scale · code``.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point matrix, not {x.dtype} {tuple(x.shape)}")
    signature.check(smooth, bits, scale, center, x.shape[1])
    codes, own = _quantize_rows(x, smooth, hadamard, bits, scale, center)
    return codes, own if scale is None else scale
