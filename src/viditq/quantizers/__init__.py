"""From a float weight to integer codes: scales, rounding, packing."""

from viditq.quantizers.grid import Grid, fake_quantize, grid_between, minmax_grid, search_grid
from viditq.quantizers.low_rank import split_low_rank
from viditq.quantizers.packing import levels, pack, unpack
from viditq.quantizers.rounding import round_gptq, round_nearest
from viditq.quantizers.scales import minmax_scale, output_error
from viditq.quantizers.two_sided import round_two_sided, two_sided_error
from viditq.quantizers.weights import GPTQ_SWEEPS, Rounded, round_weights

__all__ = [
    "GPTQ_SWEEPS",
    "Grid",
    "Rounded",
    "fake_quantize",
    "grid_between",
    "levels",
    "minmax_grid",
    "minmax_scale",
    "output_error",
    "pack",
    "round_gptq",
    "round_nearest",
    "round_two_sided",
    "round_weights",
    "search_grid",
    "split_low_rank",
    "two_sided_error",
    "unpack",
]
