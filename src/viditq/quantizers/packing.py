"""How codes of a format are stored: int8 as they are, int6 and int4 packed."""

from torch import Tensor

from viditq.formats import INT4, INT6, Format
from viditq.ops import pack_int4, pack_int6, unpack_int4, unpack_int6

__all__ = ["pack", "unpack"]


def pack(codes: Tensor, fmt: Format) -> Tensor:
    """(N, K) int8 codes -> (N, ``fmt.row_bytes(K)``), int8 for int8 and uint8 otherwise."""
    if fmt is INT4:
        return pack_int4(codes)
    if fmt is INT6:
        return pack_int6(codes)
    return codes


def unpack(stored: Tensor, fmt: Format, features: int) -> Tensor:
    """The inverse of :func:`pack`; ``features`` is K."""
    if fmt is INT4:
        return unpack_int4(stored, features)
    if fmt is INT6:
        return unpack_int6(stored, features)
    return stored
