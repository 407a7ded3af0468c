"""``viditq inspect``"""

from pathlib import Path
from typing import Annotated

import typer

from viditq.cli.options import Json
from viditq.cli.tables import layer_table
from viditq.cli.terminal import say, session, write_json

__all__ = ["inspect"]


def inspect(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory that quantize wrote.")
    ],
    json: Json = None,
) -> None:
    """What is in a quantized pipeline: layers, formats, true average bits, bytes, provenance.

    Bits count everything that is stored for a weight, its share of the scales included.

    Example:

        viditq inspect w4a8
    """
    with session():
        from viditq import checkpoint

        summary = checkpoint.inspect(directory)
        write_json(json, summary.model_dump(mode="json"))
        say(
            f"{summary.name}: {summary.transformer}, adapter {summary.plan.model}, recipe "
            f"{summary.recipe}; {summary.num_layers} layers with {summary.num_weights:,} weights "
            f"in {summary.weight_bits:.3f} bits each: {summary.size_bytes:,} bytes, in bf16 "
            f"{summary.float_size_bytes:,}."
        )
        say(layer_table(summary))
        for caveat in summary.plan.caveats:
            say(caveat)
        if summary.provenance is not None:
            for key, value in summary.provenance.model_dump().items():
                say(f"{key.replace('_', ' ')}: {value}")
