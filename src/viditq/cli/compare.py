"""``viditq compare``"""

from typing import Annotated

import typer

from viditq.cli.options import (
    BatchSize,
    Device,
    Guidance,
    Json,
    OutDirectory,
    Overwrite,
    Prompts,
    Seed,
    Steps,
)
from viditq.cli.tables import comparison_table
from viditq.cli.terminal import command_line, say, session, write_json

__all__ = ["compare"]


def compare(
    float_pipeline: Annotated[
        str, typer.Argument(metavar="FLOAT", help="The float pipeline: name, directory or hub id.")
    ],
    quantized: Annotated[
        list[str], typer.Argument(metavar="QUANTIZED", help="Directories that quantize wrote.")
    ],
    out: OutDirectory,
    prompts: Prompts = None,
    num: Annotated[
        int, typer.Option(min=1, help="Samples per pipeline; prompts start again when fewer.")
    ] = 32,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 4.5,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    bf16: Annotated[
        bool, typer.Option(help="Also run the float pipeline in bf16, as a yardstick.")
    ] = True,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Samples of float and quantized pipelines at the same seeds: numbers, pictures, a report.

    With a bundled pipeline --prompts may be left out: captions it was never trained on are taken.

    Examples:

        viditq compare shapes-image w8a8 w4a8 --num 64 --out comparison

        viditq compare ./PixArt-Sigma sigma-w8a8 --prompts prompts.txt --device cuda --out c
    """
    with session(f"Samples so far are kept beside {out}; the same command goes on.") as track:
        from viditq import evaluation
        from viditq.prompts import read_prompts
        from viditq.report import write_report

        comparison = evaluation.compare(
            float_pipeline,
            quantized,
            read_prompts(prompts) if prompts else None,
            num=num,
            out=out,
            seed=seed,
            steps=steps,
            guidance=guidance,
            device=device,
            batch_size=batch_size,
            bf16=bf16,
            overwrite=overwrite,
            command=command_line(),
            track=track,
        )
        report = write_report(comparison, out)
        write_json(json, comparison.to_json())
        say(comparison_table(comparison), f"Report: {report}")
