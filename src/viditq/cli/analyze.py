"""``viditq analyze``"""

from typing import Annotated

import typer

from viditq.cli.options import (
    Device,
    Guidance,
    Json,
    OutDirectory,
    Overwrite,
    Pipeline,
    Prompts,
    Seed,
    Steps,
)
from viditq.cli.terminal import say, session, write_json

__all__ = ["analyze"]


def analyze(
    pipeline: Pipeline,
    out: OutDirectory,
    prompts: Prompts = None,
    num: Annotated[int, typer.Option(min=1, help="Prompts to sample with.")] = 4,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 4.5,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """How the inputs of the linear layers vary: by token, condition, timestep and channel.

    These four levels decide what a quantizer must follow while it runs (tokens, conditions, steps)
    and what can be balanced beforehand (channels). Says as well what share of the channels' pattern
    is the same at every step, and how incoherent the inputs and the weights are before and after
    balancing. Writes plots and numbers.

    Example:

        viditq analyze shapes-image --out analysis
    """
    with session() as track:
        from viditq import evaluation
        from viditq.prompts import read_prompts

        analysis = evaluation.analyze(
            pipeline,
            out,
            prompts=read_prompts(prompts) if prompts else None,
            num=num,
            seed=seed,
            steps=steps,
            guidance=guidance,
            device=device,
            overwrite=overwrite,
            track=track,
        )
        write_json(json, analysis.to_json())
        for sentence in analysis.sentences():
            say(sentence)
        say(f"Plots and numbers: {out}")
