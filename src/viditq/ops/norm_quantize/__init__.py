"""``norm_quantize``: norm, modulation, and quantization with balancing, in one pass."""

from typing import Any

from torch import Tensor

from viditq.ops.norm_quantize import reference
from viditq.ops.norm_quantize.reference import normalize_rows
from viditq.ops.quantize_rows import signature
from viditq.ops.registration import register_op

__all__ = ["NORMS", "norm_quantize", "normalize_rows"]

NORMS = ("layer", "rms")


def _shape(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return signature.empty_result(x, x.shape[1], scale=arguments[9])


_norm_quantize = register_op(
    "norm_quantize(Tensor x, str kind, float eps, Tensor? weight, Tensor? bias, Tensor? gain, "
    "Tensor? shift, Tensor? smooth, int hadamard, int bits, Tensor? scale, Tensor? center=None) "
    "-> (Tensor, Tensor)",
    reference.norm_quantize,
    _shape,
    kernels="viditq.ops.norm_quantize",
)


def norm_quantize(
    x: Tensor,
    kind: str = "layer",
    eps: float = 1e-6,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    smooth: Tensor | None = None,
    hadamard: int = 0,
    bits: int = 8,
    scale: Tensor | None = None,
    center: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize and modulate each row of ``x``, then quantize it.

    Args:
        x: (M, K), bf16, fp16 or fp32.
        kind: ``layer`` or ``rms``.
        eps: added to the variance or mean square.
        weight: (K,) of the norm, any float, or ``None``.
        bias: (K,) of the norm, any float, or ``None``.
        gain: (B, K), any float, B dividing M: rows ``i·M/B … (i+1)·M/B`` are multiplied by
            ``1 + gain[i]``. (AdaLN calls it scale.) B = M is modulation per token.
        shift: (B, K) added after that.
        smooth: (K,) fp32 per-channel vector that the result is divided by, or ``None``.
        hadamard: block size of the rotation, a power of two that divides K; 0 for none.
        bits: 2 … 8; codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        scale: () fp32, static; ``None`` for one of each row's own.
        center: (K,), any float, that is taken off the result before it is divided, or ``None``.

    Returns:
        codes (M, K) int8 and scale (M,) fp32, or the one given.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point matrix, not {x.dtype} {tuple(x.shape)}")
    if kind not in NORMS:
        raise ValueError(f"kind must be one of {', '.join(NORMS)}, not {kind!r}")
    rows, features = x.shape
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != (features,):
            raise ValueError(f"{name} must have shape ({features},), not {tuple(vector.shape)}")
    for name, vectors in (("gain", gain), ("shift", shift)):
        if vectors is None:
            continue
        if vectors.ndim != 2 or vectors.shape[1] != features:
            raise ValueError(f"{name} must have shape (B, {features}), not {tuple(vectors.shape)}")
        batches = vectors.shape[0]
        if rows and (not batches or rows % batches):
            raise ValueError(f"the {batches} rows of {name} do not divide the {rows} of x")
    signature.check(smooth, bits, scale, center, features)
    codes, own = _norm_quantize(
        x, kind, eps, weight, bias, gain, shift, smooth, hadamard, bits, scale, center
    )
    return codes, own if scale is None else scale
