"""``unpack_tcq4``: the integer weights that trellis-coded 4-bit numbers stand for.

Each weight is decided by its own code and the two before it in its row, twelve bits: a *window*
``w`` that slides along the row by one code a weight (a bitshift trellis, QTIP, arXiv 2406.11235,
section 3.1; trellis-coded quantization is from Marcellin and Fischer, 1990). What a window means is
computed, not looked up: the bytes of ``w · 3432601039 + 1231741627`` modulo 2³² are added, which
gives something close to a normal distribution, and brought into 8 bits: ``(sum - 510) >> 2``
(section 3.2 of the same paper; multiplier, increment and the form in 8 bits are ours, the best of
sixty pairs tried at random). Before each row stand the codes 14 and 12: of all pairs the one after
which the sixteen values of the first weight are spread best.
"""

import torch
from torch import Tensor

from viditq.ops.registration import register_op
from viditq.ops.unpack_tcq4 import reference
from viditq.ops.unpack_tcq4.reference import BEFORE, window_values

__all__ = ["BEFORE", "unpack_tcq4", "window_values"]


def _shape(packed: Tensor, features: int) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], features), dtype=torch.int8)


_unpack_tcq4 = register_op(
    "unpack_tcq4(Tensor packed, int features) -> Tensor",
    reference.unpack_tcq4,
    _shape,
    kernels="viditq.ops.unpack_tcq4",
)


def unpack_tcq4(packed: Tensor, features: int) -> Tensor:
    """Packed codes to weights in steps of their channel's scale.

    Args:
        packed: (N, ⌈K/2⌉) uint8, as made by :func:`viditq.ops.pack_int4`.
        features: K.

    Returns:
        (N, K) int8.
    """
    if packed.ndim != 2 or packed.shape[1] != -(-features // 2):
        raise ValueError(
            f"packed must be (N, {-(-features // 2)}) for {features} features, not "
            f"{tuple(packed.shape)}"
        )
    return _unpack_tcq4(packed, features)
