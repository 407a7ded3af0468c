"""Formats of codes: how many bits a number has, its range, and the bytes it takes.

The integers are two's complement, ``value = scale * code``; ``fp8`` is e4m3, an 8-bit float, with a
scale as well. In ``tcq4``, trellis-coded 4-bit numbers, a code and the two before it in its row
decide on a value of 8 bits together (:mod:`viditq.ops.unpack_tcq4`). A format says nothing about
granularity (one scale per output channel, per token, per tensor) nor about zero points: these are
the plan's matter.
"""

from dataclasses import dataclass

from viditq.errors import PlanError

__all__ = ["FORMATS", "FP8", "INT4", "INT6", "INT8", "TCQ4", "Format", "format_named"]


@dataclass(frozen=True, slots=True)
class Format:
    """What codes are.

    ``group`` codes are stored together in ``group_bytes`` bytes: int8 and fp8 one in one, int6 four
    in three, int4 and tcq4 two in one.
    """

    name: str
    bits: int
    group: int
    group_bytes: int

    def __post_init__(self) -> None:
        assert self.group * self.bits == 8 * self.group_bytes

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers in two's complement."""
        return self.name != "fp8"

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1)) if self.is_integer else -self.qmax

    @property
    def qmax(self) -> int:
        """Largest code; ``scale = amax / qmax`` makes the largest magnitude representable."""
        return 2 ** (self.bits - 1) - 1 if self.is_integer else 448

    def row_bytes(self, features: int) -> int:
        """Bytes of one stored row of ``features`` codes; an incomplete last group is padded."""
        return -(-features // self.group) * self.group_bytes


INT8 = Format("int8", 8, 1, 1)
INT6 = Format("int6", 6, 4, 3)
INT4 = Format("int4", 4, 2, 1)
TCQ4 = Format("tcq4", 4, 2, 1)
FP8 = Format("fp8", 8, 1, 1)
FORMATS = {f.name: f for f in (INT8, INT6, INT4)}
"""The integer formats whose codes are multiples of a scale."""


def format_named(name: str) -> Format:
    """The format called ``name``; :class:`PlanError` if there is none."""
    formats = {**FORMATS, TCQ4.name: TCQ4, FP8.name: FP8}
    if name not in formats:
        raise PlanError(f"Unknown format {name!r}; formats are {', '.join(formats)}.")
    return formats[name]
