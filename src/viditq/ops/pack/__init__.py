"""Two 4-bit codes per byte, four 6-bit codes per three bytes."""

from viditq.ops.pack.reference import pack_int4, pack_int6, unpack_int4, unpack_int6

__all__ = ["pack_int4", "pack_int6", "unpack_int4", "unpack_int6"]
