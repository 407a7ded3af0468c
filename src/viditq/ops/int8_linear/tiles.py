"""Which tiles an integer product is cut into: chosen by counting rounds, never tuned at run time.

A round is one tile on each multiprocessor; the last one may leave most of them without work, and
that, at a few rounds in all, costs more than the shape of a tile does.
"""

from functools import cache

__all__ = ["HOPPER_ROWS", "HOPPER_WIDTHS", "TILES", "choose_tile", "share_out"]

TILES = ((128, 256, 8, 3), (128, 128, 8, 3), (128, 64, 4, 4), (64, 64, 4, 4), (16, 64, 4, 4))
"""(rows, columns, warps, stages) of a tile in Triton, from the most to the least work per byte
loaded. The first leaves no registers for a gate or residual."""

HOPPER_ROWS = 128
HOPPER_WIDTHS = ((128, 128), (128, 64))
"""Columns of the first and second half of a tile on Hopper."""


@cache
def choose_tile(m: int, n: int, processors: int, plain: bool) -> tuple[int, int, int, int]:
    """The tile of :data:`TILES` that needs the least time for (m, n) on so many multiprocessors.

    The time of a round grows with the tile's area, and per area with the bytes that it loads.
    ``plain`` says that neither a gate nor a residual follows.
    """

    def time(tile: tuple[int, int, int, int]) -> float:
        rows, columns = tile[:2]
        rounds = -(-(-(-m // rows) * -(-n // columns)) // processors)
        return rounds * (rows * columns + 48 * (rows + columns))

    return min(TILES if plain else TILES[1:], key=time)


@cache
def share_out(m: int, n: int, processors: int) -> tuple[tuple[int, int], int, int]:
    """On Hopper: widths of a tile's halves, number of whole tiles and of half tiles for (m, n).

    Counted in columns times rounds. Half tiles load more for their work and hide no epilogue, which
    costs a third more; a narrow second half loads a little more. Measured on an H200.
    """
    choices = []
    for widths in HOPPER_WIDTHS:
        tiles = -(-m // HOPPER_ROWS) * -(-n // sum(widths))
        splits = {tiles}
        if widths[0] == widths[1]:
            splits.add(tiles - tiles % processors)
        for whole in splits:
            halves = 2 * (tiles - whole)
            rounds, half_rounds = -(-whole // processors), -(-halves // processors)
            equal = widths[0] == widths[1]
            time = rounds * sum(widths) * (1 if equal else 1.02) + half_rounds * 1.33 * widths[0]
            choices.append((time, widths, whole, halves))
    return min(choices)[1:]
