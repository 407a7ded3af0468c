"""Options that several commands share: one wording, one range, one default."""

from pathlib import Path
from typing import Annotated

import typer

from viditq.zoo.catalog import BUNDLED

__all__ = [
    "BatchSize",
    "Bits",
    "Device",
    "Gpus",
    "Guidance",
    "Json",
    "OutDirectory",
    "Overwrite",
    "Pipeline",
    "Prompts",
    "Seed",
    "Steps",
    "WorkDirectory",
    "Workers",
]

Pipeline = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        help=f"Name of a bundled pipeline ({', '.join(BUNDLED)}), "
        "directory in diffusers layout, or hub id like owner/name.",
        show_default=False,
    ),
]
OutDirectory = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Directory to write: new, or empty.")
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Prompts, UTF-8, one a line; blank lines and lines with # are skipped."
    ),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first sample; the next has one more.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")]
Guidance = Annotated[
    float,
    typer.Option(min=0.0, help="Guidance scale; 1 switches it off if it is classifier-free."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Samples made together; it does not change their noise.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier output of this command.")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the result as JSON to this file."),
]
WorkDirectory = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Directory to work in: new, empty, or one to go on with."
    ),
]
Bits = Annotated[
    str, typer.Option(metavar="wXaY", help="Of weights and activations: 4, 6 or 8 each.")
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With --device cuda: GPUs to use, by default all; more than one needs Ray.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="With --device cpu: processes, 1 by default; more need Ray."
    ),
]
