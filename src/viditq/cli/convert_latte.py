"""``viditq convert-latte``"""

from pathlib import Path
from typing import Annotated

import typer

from viditq.cli.options import Json, Overwrite
from viditq.cli.terminal import say, session, write_json

__all__ = ["convert_latte"]


def convert_latte(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The network: a .pt or .safetensors file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write: new, or empty.")],
    vae: Annotated[
        str, typer.Option(metavar="SOURCE", help="Autoencoder of images: a directory or a hub id.")
    ] = "stabilityai/sd-vae-ft-ema",
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Names of the classes, one a line, in the order of their numbers."
        ),
    ] = None,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the attention.")] = 16,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write a published checkpoint of Latte for classes as a pipeline for the other commands.

    Prompts are then numbers of classes, or names from --labels. The file is read without running
    any code that may be in it.

    Examples:

        viditq convert-latte ucf101.pt latte-ucf101

        viditq convert-latte ucf101.pt named --labels classes.txt --vae ./sd-vae-ft-ema
    """
    with session():
        from viditq import pipelines

        pipelines.convert_latte(
            checkpoint, out, vae=vae, labels=labels, heads=heads, overwrite=overwrite
        )
        pipeline = pipelines.read_index(out)["_class_name"]
        write_json(json, {"out": str(out), "pipeline": pipeline})
        say(f"{out}: {pipeline}.")
