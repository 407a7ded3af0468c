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
        str, typer.Option(metavar="SOURCE", help="Autoencoder: a directory or a hub id.")
    ] = "stabilityai/sd-vae-ft-ema",
    size: Annotated[int, typer.Option(min=1, help="Height and width of a video, in pixels.")] = 512,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 16,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the attention.")] = 16,
    space_scale: Annotated[
        float | None,
        typer.Option(min=0.01, help="Scale of positions in a frame.", show_default="size / 512"),
    ] = None,
    time_scale: Annotated[
        float,
        typer.Option(min=0.01, help="Scale of positions in time; Open-Sora: ⅔ for 64 frames."),
    ] = 1.0,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Write a published checkpoint of Open-Sora 1.0 as a pipeline that the other commands take.

    The file is read without running any code that may be in it.

    Examples:

        viditq convert-opensora OpenSora-v1-HQ-16x512x512.pth opensora

        viditq convert-opensora OpenSora-v1-16x256x256.pth small --size 256 --vae ./sd-vae-ft-ema
    """
    with session():
        from viditq import pipelines

        pipelines.convert_opensora(
            checkpoint,
            out,
            text_encoder=text_encoder,
            vae=vae,
            size=size,
            frames=frames,
            heads=heads,
            space_scale=space_scale,
            time_scale=time_scale,
            overwrite=overwrite,
        )
        write_json(json, {"out": str(out), "size": size, "frames": frames})
        say(f"{out}: Open-Sora 1.0, {frames} frames of {size}×{size} pixels.")
