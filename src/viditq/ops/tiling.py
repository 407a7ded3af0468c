"""How the row-wise Triton kernels cut a row: a compile-time argument of theirs, made once a width.

A row is cut into *pieces*. Their widths are powers of two, as Triton wants them, and together fit K
better than its next power of two: 4608 = 4096 + 512. A row whose first columns lie in another
tensor has pieces of their own for these. A piece is C chunks of consecutive columns, and a chunk is
cut into *parts*. A kernel holds a part as a tensor of shape (C, L): L columns of each chunk. Triton
lays the last dimension out over vectors and lanes and the first over lanes and warps. L is wide
enough for full vectors and no wider, so that a chunk is with few lanes: most butterflies of the
rotation then are additions within a thread, the others exchange values between lanes, and none
needs shared memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["LANES", "REGISTERS", "Part", "Tiling", "tiling"]

LANES = 32
REGISTERS = 65536
"""Of a multiprocessor."""


@dataclass(frozen=True)
class Part:
    """Some columns of a row: C times L consecutive ones, ``pitch`` apart, from ``first`` on."""

    first: int
    pitch: int
    C: int
    L: int
    index: int
    """Its place among the parts of its piece."""
    end: int
    """Columns from here on are another part's, or past the row's end."""

    @property
    def padded(self) -> bool:
        """Whether it reaches past its end."""
        return self.first + (self.C - 1) * self.pitch + self.L > self.end


@dataclass(frozen=True, eq=False)
class Tiling:
    """How kernels go over rows of one width; a compile-time argument of theirs.

    There is one object for a width, compared by identity: every launch looks it up.

    Attributes:
        features: K.
        left: of them, the columns that another tensor holds, the first ones.
        block: of the rotation, 0 for none.
        parts: of a row.
        warps: of a program.
        residents: programs on a multiprocessor at a time.
    """

    features: int
    left: int
    block: int
    parts: tuple[Part, ...]
    warps: int
    residents: int

    @property
    def threads(self) -> int:
        """Of a program."""
        return LANES * self.warps

    @property
    def butterflies(self) -> int:
        """Stages of the rotation."""
        return max(1, self.block).bit_length() - 1

    @property
    def norm(self) -> float:
        """What the matrix of ±1 is multiplied by."""
        return max(1, self.block) ** -0.5

    @property
    def options(self) -> dict[str, Any]:
        """For the launch."""
        registers = REGISTERS // (self.threads * self.residents)
        return {
            "num_warps": self.warps,
            "maxnreg": min(255, registers // 8 * 8),
        }


@cache
def tiling(features: int, block: int = 0, vectors: int = 1, left: int = 0) -> Tiling:
    """For rows of ``features``, rotated in blocks of ``block``.

    The first ``left`` columns, which ``block`` divides too, have parts of their own. ``vectors``
    per channel, 1 or 2, stay in registers beside the values and those of the next row. So 16 warps
    of a multiprocessor have 128 registers for each thread, 12 have 168, and 8 have all they want.
    """
    block = block if block > 1 else 0
    warps = min(32, _power_of_two(math.ceil(features / ((48, 40)[vectors - 1] * LANES))))
    crowded = vectors == 2 and features > 28 * LANES * warps
    residents = max(1, ((8 if block else 12) if crowded else 16) // warps)
    return Tiling(
        features,
        left,
        block,
        parts=(*_parts(0, left, block, warps), *_parts(left, features, block, warps)),
        warps=warps,
        residents=residents,
    )


def _parts(first: int, end: int, block: int, warps: int) -> Iterator[Part]:
    """Of the columns from ``first`` to ``end``."""
    for width in _widths(end - first, max(128 * warps, block)):
        pitch = max(block, 128) if block else width // warps
        C = width // pitch
        L = pitch // max(1, min(width // (LANES * warps), pitch) // 16)
        for index in range(pitch // L):
            yield Part(first + index * L, pitch, C, L, index, end)
        first += width


def _widths(features: int, least: int) -> list[int]:
    """Powers of two, none below ``least``, whose sum is ``features`` or little more."""
    widths: list[int] = []
    left = features
    while left > 0:
        width = max(least, _power_of_two(left))
        # Two of the least would be as many columns, in narrower accesses.
        if width > 2 * least and width - left > features // 12:
            width //= 2
        widths.append(width)
        left -= width
    return widths


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
