"""``gelu_quantize``: GELU, SiLU or a gated form of them, and quantization with balancing."""

from torch import Tensor

from viditq.ops.gelu_quantize import reference
from viditq.ops.gelu_quantize.reference import activate_rows
from viditq.ops.quantize_rows import signature
from viditq.ops.registration import register_op

__all__ = ["ACTIVATIONS", "activate_rows", "gelu_quantize"]

ACTIVATIONS = ("gelu", "gelu_tanh", "silu")


def _shape(
    x: Tensor,
    kind: str,  # noqa: ARG001
    gated: bool,
    smooth: Tensor | None,  # noqa: ARG001
    hadamard: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    left: Tensor | None = None,
    scale: Tensor | None = None,
    center: Tensor | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return signature.empty_result(x, _features(x, gated, left), scale)


def _features(x: Tensor, gated: bool, left: Tensor | None) -> int:
    """How many columns the codes have."""
    activated = x.shape[1] // 2 if gated else x.shape[1]
    return activated if left is None else left.shape[1] + activated


_gelu_quantize = register_op(
    "gelu_quantize(Tensor x, str kind, bool gated, Tensor? smooth, int hadamard, int bits, "
    "Tensor? left=None, Tensor? scale=None, Tensor? center=None) -> (Tensor, Tensor)",
    reference.gelu_quantize,
    _shape,
    kernels="viditq.ops.gelu_quantize",
)


def gelu_quantize(
    x: Tensor,
    kind: str = "gelu",
    *,
    gated: bool = False,
    smooth: Tensor | None = None,
    hadamard: int = 0,
    bits: int = 8,
    left: Tensor | None = None,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply an activation function to each row of ``x``, then quantize it.

    Args:
        x: (M, K), bf16, fp16 or fp32; (M, 2K) if gated.
        kind: ``gelu`` (erf), ``gelu_tanh`` or ``silu``.
        gated: the second half of each row, activated, multiplies the first (GEGLU, SwiGLU).
        smooth: (L + K,) fp32 per-channel vector that the result is divided by, or ``None``.
        hadamard: block size of the rotation, a power of two that divides L + K; 0 for none.
        bits: 2 … 8; codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        left: (M, L), any float, columns that come first and are not activated; ``None`` for L = 0.
        scale: () fp32, static; ``None`` for one of each row's own.
        center: (L + K,), any float, that is taken off the result before it is divided, or
            ``None``.

    Returns:
        codes (M, L + K) int8 and scale (M,) fp32, or the one given.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point matrix, not {x.dtype} {tuple(x.shape)}")
    if kind not in ACTIVATIONS:
        raise ValueError(f"kind must be one of {', '.join(ACTIVATIONS)}, not {kind!r}")
    if gated and x.shape[1] % 2:
        raise ValueError(f"a gated activation needs an even number of columns, not {x.shape[1]}")
    if left is not None and (left.shape[:-1] != x.shape[:1] or not left.is_floating_point()):
        raise ValueError(
            f"left must be a floating-point matrix with {x.shape[0]} rows, not {left.dtype} "
            f"{tuple(left.shape)}"
        )
    signature.check(smooth, bits, scale, center, _features(x, gated, left))
    codes, own = _gelu_quantize(x, kind, gated, smooth, hadamard, bits, left, scale, center)
    return codes, own if scale is None else scale
