"""``norm_rotate``: norm of queries or keys, rotary embedding and concatenation, in one pass."""

from typing import Any, NamedTuple

from torch import Tensor

from viditq.ops.norm_rotate import reference, signature
from viditq.ops.registration import register_op

__all__ = ["Stream", "norm_rotate"]


class Stream(NamedTuple):
    """Queries or keys of some tokens, and what is to be done to them.

    Attributes:
        x: (B, S, H, D), bf16, fp16 or fp32. Heads of a token lie side by side; samples and tokens
            may have gaps, as in the joint product with the others (otherwise it is copied first).
        weight: of the norm, (D,) or across heads (H·D,), any float, or ``None``.
        eps: added to the mean square; ``None`` for no norm.
        rotation: cosines and sines, any float, of the angle of each pair of neighbours:
            (B, S, H, D/2) each, or 1 in place of a dimension in which they are all the same.
            ``None``: nothing turns.
        bias: of the norm, as ``weight``.
        centred: the mean is taken off before the norm (LayerNorm).
    """

    x: Tensor
    weight: Tensor | None = None
    eps: float | None = None
    rotation: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    centred: bool = False


def _shape(*arguments: Any) -> Tensor:
    given, _ = signature.parts(arguments)
    return signature.empty_result(given)


_norm_rotate = register_op(
    "norm_rotate(Tensor x, Tensor? weight, Tensor? bias, float? eps, bool centred, "
    "Tensor? cos, Tensor? sin, bool across, "
    "Tensor? second, Tensor? second_weight, Tensor? second_bias, float? second_eps, "
    "bool second_centred, Tensor? second_cos, Tensor? second_sin) -> Tensor",
    reference.norm_rotate,
    _shape,
    kernels="viditq.ops.norm_rotate",
)

_NO_ROTATION = (None, None)
_NO_STREAM = (None, None, None, None, False, None, None)


def norm_rotate(first: Stream, second: Stream | None = None, *, across: bool = False) -> Tensor:
    """Normalize and rotate the heads of one or two streams of tokens.

    Args:
        first: S tokens.
        second: T tokens that come behind them, of the same batch, heads, and dtype.
        across: one mean square for all heads of a token rather than one for each.

    Returns:
        (B, S + T, H, D), dense, of the dtype of ``first.x``.
    """
    _check(first, across)
    if second is None:
        return _norm_rotate(*_flat(first), across, *_NO_STREAM)
    _check(second, across)
    x, more = first.x, second.x
    if more.dtype != x.dtype or more.shape[0] != x.shape[0] or more.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"both streams must have the same dtype, batch and heads, not {x.dtype} "
            f"{tuple(x.shape)} and {more.dtype} {tuple(more.shape)}"
        )
    return _norm_rotate(*_flat(first), across, *_flat(second))


def _flat(stream: Stream) -> tuple[Any, ...]:
    x, weight, eps, rotation, bias, centred = stream
    return x, weight, bias, eps, centred, *(rotation or _NO_ROTATION)


def _check(stream: Stream, across: bool) -> None:
    x, weight, _, rotation, bias, _ = stream
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating-point (B, S, H, D), not {x.dtype} {tuple(x.shape)}")
    samples, tokens, heads, features = x.shape
    width = heads * features if across else features
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != (width,):
            raise ValueError(f"{name} must have shape ({width},), not {tuple(vector.shape)}")
    if rotation is None:
        return
    if features % 2:
        raise ValueError(f"heads of {features} features have no pairs to rotate")
    wanted = (samples, tokens, heads, features // 2)
    for name, table in zip(("cos", "sin"), rotation, strict=True):
        shape = table.shape
        if (
            len(shape) != 4
            or shape[3] != wanted[3]
            or any(size not in (1, own) for size, own in zip(shape, wanted, strict=True))
        ):
            raise ValueError(f"{name} must be {wanted}, or 1 in its place, not {tuple(shape)}")
    if rotation[0].shape != rotation[1].shape:
        raise ValueError("cos and sin must have the same shape")
