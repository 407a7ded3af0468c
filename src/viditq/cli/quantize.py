"""``viditq quantize``"""

from typing import Annotated

import typer

from viditq.cli.options import Device, Json, OutDirectory, Overwrite, Pipeline, Prompts, Seed
from viditq.cli.terminal import say, session, write_json

__all__ = ["quantize"]


def quantize(
    pipeline: Pipeline,
    out: OutDirectory,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="w8a8, w6a6, w4a8, w4a8-tcq, either -refined, bits with a method of others "
            "(w4a8-quarot), or the TOML file of a recipe.",
        ),
    ] = "w8a8",
    prompts: Prompts = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write a quantized copy of a pipeline: calibrate, balance, quantize.

    The copy is a directory in diffusers layout, complete in itself. Calibration runs the float
    pipeline on --prompts (by default some that come with viditq).

    Examples:

        viditq quantize shapes-image --preset w4a8 --out w4a8

        viditq quantize ./PixArt-Sigma --prompts prompts.txt --device cuda --out sigma-w8a8
    """
    with session(f"The calibration is kept beside {out}; the same command goes on.") as track:
        from viditq import checkpoint, pipelines
        from viditq.prompts import read_prompts

        pipelines.quantize(
            pipeline,
            out,
            preset=preset,
            prompts=read_prompts(prompts) if prompts else None,
            device=device,
            seed=seed,
            overwrite=overwrite,
            track=track,
        )
        summary = checkpoint.inspect(out)
        write_json(json, {"out": str(out), **summary.model_dump(mode="json", exclude={"layers"})})
        say(
            f"{out}: {summary.num_layers} layers in {summary.weight_bits:.2f} bits a weight, "
            f"{summary.size_bytes / summary.float_size_bytes:.2f} × their bf16 size."
        )
