"""torchao, the library that users would pick today: imported only when it is asked for.

Its recommended settings of inductor are left alone: they hold for the whole process, so for all
that is timed after it, and search for minutes.
"""

from collections.abc import Callable
from importlib import import_module

from torch import nn

from viditq.bench.record import CannotRun

__all__ = ["quantize_peer_"]


def quantize_peer_(model: nn.Module, kind: str, wanted: Callable[[nn.Module, str], bool]) -> None:
    """Quantize linears of a bf16 ``model`` in place with dynamic activations.

    Args:
        model: in bf16; compile it afterwards, or it is slow.
        kind: ``int8`` (per token, per channel) or ``fp8`` (row-wise).
        wanted: says of (module, name) whether it is to be quantized.
    """
    try:
        torchao = import_module("torchao.quantization")
    except ImportError as error:
        raise CannotRun("torchao is not installed") from error
    if kind == "fp8":
        config = torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(), set_inductor_config=False
        )
    else:
        config = torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    torchao.quantize_(model, config, filter_fn=wanted)
