"""``viditq shootout``"""

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

__all__ = ["shootout"]


def shootout(
    pipeline: Pipeline,
    out: WorkDirectory,
    bits: Bits = "w4a8",
    methods: Annotated[
        str,
        typer.Option(
            metavar="all|NAME,…",
            help="Methods with commas: all, names (naive, dynamic, smoothquant, quarot, …), other "
            "recipes (w8a8-smoothquant) and TOML files. viditq's own always takes part.",
        ),
    ] = "all",
    prompts: Prompts = None,
    num: Annotated[int, typer.Option(min=1, help="Samples per method.")] = 128,
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
    """Every method at the same bits: one calibration, the same seeds, who is nearest to float.

    Gains are taken seed by seed over viditq's own recipe; "won" and "lost" are outside their 95 %
    interval. What was stopped goes on with the same command.

    Examples:

        viditq shootout shapes-image --bits w4a8 --num 128 --out contest --json contest.json

        viditq shootout shapes-image --methods naive,quarot,mine.toml --num 16 --out c
    """
    with session(f"What is done is kept in {out}; the same command goes on.") as track:
        from viditq import evaluation
        from viditq.prompts import read_prompts
        from viditq.report import write_contest_report

        lineup = evaluation.shootout_lineup(bits, methods)
        for sentence in lineup.absent:
            note(sentence)
        contest = evaluation.run_contest(
            pipeline,
            lineup,
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
