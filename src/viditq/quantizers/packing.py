"""How codes of a format are stored: int8 as they are, the others packed."""

from torch import Tensor

from viditq.formats import INT4, INT6, TCQ4, Format
from viditq.ops import pack_int4, pack_int6, unpack_int4, unpack_int6, unpack_tcq4

__all__ = ["levels", "pack", "unpack"]


def pack(codes: Tensor, fmt: Format) -> Tensor:
    """(N, K) int8 codes -> (N, ``fmt.row_bytes(K)``), int8 for int8 and uint8 otherwise."""
    if fmt in (INT4, TCQ4):
        return pack_int4(codes)
    if fmt is INT6:
        return pack_int6(codes)
    return codes


def unpack(stored: Tensor, fmt: Format, features: int) -> Tensor:
    """(N, K = ``features``) int8 :func:`levels` of the codes that :func:`pack` stored."""
    if fmt is TCQ4:
        return unpack_tcq4(stored, features)
    if fmt is INT4:
        return unpack_int4(stored, features)
    if fmt is INT6:
        return unpack_int6(stored, features)
    return stored


def levels(codes: Tensor, fmt: Format) -> Tensor:
    """(N, K) codes -> (N, K), in steps of the scale: the codes themselves, but for ``tcq4``."""
    return unpack_tcq4(pack_int4(codes), codes.shape[-1]) if fmt is TCQ4 else codes
