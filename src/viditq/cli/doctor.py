"""``viditq doctor``"""

from typing import Annotated

import typer

from viditq.cli.options import Json, Pipeline
from viditq.cli.tables import speed_tables
from viditq.cli.terminal import say, session, write_json

__all__ = ["doctor"]


def doctor(
    pipeline: Pipeline,
    device: Annotated[str, typer.Option(help="What to measure: cuda, cuda:N or cpu.")] = "cuda",
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="M",
            help="Tokens of one call, both guidance branches together; by default what the "
            "pipeline's size gives.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Which layers of a pipeline get faster on this machine, by how much, and why not.

    No weights are read. Without a GPU the layers are listed and nothing is measured.

    Examples:

        viditq doctor shapes-image

        viditq doctor ./PixArt-Sigma --tokens 8192
    """
    with session() as track:
        from viditq import bench

        diagnosis = bench.diagnose(pipeline, device, tokens=tokens, track=track)
        write_json(json, diagnosis.model_dump(mode="json"))
        say(*speed_tables([diagnosis.table()]))
        say(diagnosis.sentence)
        if diagnosis.advice is not None:
            say(diagnosis.advice)
