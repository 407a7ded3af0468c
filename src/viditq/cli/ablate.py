"""``viditq ablate``"""

from typing import Annotated

import typer

from viditq.cli.options import (
    BatchSize,
    Bits,
    Device,
    Gpus,
    Guidance,
    Json,
    Overwrite,
    Pipeline,
    Prompts,
    Seed,
    Steps,
    WorkDirectory,
    Workers,
)
from viditq.cli.tables import contest_table
from viditq.cli.terminal import command_line, note, say, session, write_json

__all__ = ["ablate"]


def ablate(
    pipeline: Pipeline,
    out: WorkDirectory,
    bits: Bits = "w4a8",
    ladder: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="paper, or the TOML file of a ladder.")
    ] = "paper",
    prompts: Prompts = None,
    num: Annotated[int, typer.Option(min=1, help="Samples per step of the ladder.")] = 128,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 4.5,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    gpus: Gpus = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """A ladder of recipes, each with its gain over the one before: what every part is worth.

    The ladder "paper" is ViDiT-Q's own and goes on with what viditq adds. Gains are taken seed by
    seed; what was stopped goes on with the same command.

    Examples:

        viditq ablate shapes-image --ladder paper --bits w4a8 --out ladder --json ladder.json

        viditq ablate shapes-video --ladder mine.toml --num 16 --out mine
    """
    with session(f"What is done is kept in {out}; the same command goes on.") as track:
        from viditq import evaluation
        from viditq.prompts import read_prompts
        from viditq.report import write_contest_report

        contest = evaluation.run_contest(
            pipeline,
            evaluation.ladder_lineup(ladder, bits),
            read_prompts(prompts) if prompts else None,
            num=num,
            out=out,
            seed=seed,
            steps=steps,
            guidance=guidance,
            device=device,
            batch_size=batch_size,
            gpus=gpus,
            workers=workers,
            overwrite=overwrite,
            command=command_line(),
            track=track,
            tell=note,
        )
        report = write_contest_report(out)
        write_json(json, contest.to_json())
        say(contest_table(contest), f"Report: {report}")
