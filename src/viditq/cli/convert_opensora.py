"""``viditq convert-opensora``"""

from pathlib import Path
from typing import Annotated

import typer

from viditq.cli.options import Json, Overwrite
from viditq.cli.terminal import say, session, write_json

__all__ = ["convert_opensora"]


def convert_opensora(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="The network: a .pth or .safetensors file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write: new, or empty.")],
    text_encoder: Annotated[
        str, typer.Option(metavar="SOURCE", help="T5 and tokenizer: a directory or a hub id.")
    ] = "DeepFloyd/t5-v1_1-xxl",
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Autoencoder of images, likewise.", show_default="Open-Sora's"
        ),
    ] = None,
    temporal_vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="1.2: model.safetensors of hpcai-tech/OpenSora-VAE-v1.2."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Height of a video in pixels; 1.0: and width.", show_default="512; 1.2: 240"
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="1.2: width in pixels.", show_default="426")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a video.", show_default="16; 1.2: 51")
    ] = None,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the attention.")] = 16,
    space_scale: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="1.0: scale of positions in a frame.", show_default="size / 512"
        ),
    ] = None,
    time_scale: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="1.0: scale of positions in time, ⅔ for 64 frames.", show_default="1"
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write a published checkpoint of Open-Sora 1.0 or 1.2 as a pipeline for the other commands.

    The file is read without running any code that may be in it.

    Examples:

        viditq convert-opensora OpenSora-v1-HQ-16x512x512.pth opensora

        viditq convert-opensora OpenSora-v1-16x256x256.pth small --size 256 --vae ./sd-vae-ft-ema

        viditq convert-opensora STDiT-v3.safetensors opensora12 --temporal-vae VAE-v1.2.safetensors
    """
    with session():
        from viditq import pipelines

        pipelines.convert_opensora(
            checkpoint,
            out,
            text_encoder=text_encoder,
            vae=vae,
            temporal_vae=temporal_vae,
            size=size,
            width=width,
            frames=frames,
            heads=heads,
            space_scale=space_scale,
            time_scale=time_scale,
            overwrite=overwrite,
        )
        pipeline = pipelines.read_index(out)["_class_name"]
        write_json(json, {"out": str(out), "pipeline": pipeline})
        say(f"{out}: {pipeline}.")
