"""``viditq generate``"""

from pathlib import Path
from typing import Annotated

import typer

from viditq.cli.options import Device, Guidance, Json, Pipeline, Seed, Steps
from viditq.cli.terminal import say, session, write_json

__all__ = ["generate"]


def generate(
    pipeline: Pipeline,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="What to make; of a pipeline for classes, a number or a name."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A .png for an image, .mp4 for a video.")
    ],
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 4.5,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Make one sample with a float or quantized pipeline.

    Examples:

        viditq generate w4a8 --prompt "a small red star on the left over blue dots" --out a.png

        viditq generate shapes-video --prompt "a green ring orbiting over grey dots" --out a.mp4
    """
    with session() as track:
        from viditq import pipelines
        from viditq.evaluation.media import check_suffix, write_sample

        pipe = pipelines.load(pipeline, device)
        check_suffix(out, pipelines.family(pipe).kind)
        sample = pipelines.generate(
            pipe, [prompt], [seed], steps=steps, guidance=guidance, track=track
        )[0]
        write_sample(sample, out)
        settings = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance}
        write_json(json, {"out": str(out), "shape": list(sample.shape), **settings})
        *frames, height, width, _ = sample.shape
        what = f"{frames[0]} frames of {width}×{height}" if frames else f"{width}×{height}"
        say(f"{out}: {what} pixels, seed {seed}.")
