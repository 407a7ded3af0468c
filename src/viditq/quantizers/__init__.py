"""From a float weight to integer codes: scales, rounding, packing."""

from viditq.quantizers.packing import pack, unpack
from viditq.quantizers.rounding import round_gptq, round_nearest
from viditq.quantizers.scales import minmax_scale, output_error, search_scale

__all__ = [
    "minmax_scale",
    "output_error",
    "pack",
    "round_gptq",
    "round_nearest",
    "search_scale",
    "unpack",
]
