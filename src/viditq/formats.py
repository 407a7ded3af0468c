"""Integer formats: how many bits a number has, its range, and the bytes it takes.

All formats are symmetric two's complement integers, ``value = scale * code``. A format says nothing
about granularity (one scale per output channel, per token, per tensor): that is the plan's matter.
Asymmetric and floating-point formats are declined: after balancing a zero point gains little and
would cost an extra sum over tokens in every GEMM.
"""

from dataclasses import dataclass

from viditq.errors import PlanError

__all__ = ["FORMATS", "INT4", "INT6", "INT8", "Format", "format_named"]


@dataclass(frozen=True, slots=True)
class Format:
    """A symmetric integer format.

    ``group`` codes are stored together in ``group_bytes`` bytes: int8 one in one, int6 four in
    three, int4 two in one.
    """

    name: str
    bits: int
    group: int
    group_bytes: int

    def __post_init__(self) -> None:
        assert self.group * self.bits == 8 * self.group_bytes

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code; ``scale = amax / qmax`` makes the largest magnitude representable."""
        return 2 ** (self.bits - 1) - 1

    def row_bytes(self, features: int) -> int:
        """Bytes of one stored row of ``features`` codes; an incomplete last group is padded."""
        return -(-features // self.group) * self.group_bytes


INT8 = Format("int8", 8, 1, 1)
INT6 = Format("int6", 6, 4, 3)
INT4 = Format("int4", 4, 2, 1)
FORMATS = {f.name: f for f in (INT8, INT6, INT4)}


def format_named(name: str) -> Format:
    """The format called ``name``; :class:`PlanError` if there is none."""
    if name not in FORMATS:
        raise PlanError(f"Unknown format {name!r}; formats are {', '.join(FORMATS)}.")
    return FORMATS[name]
