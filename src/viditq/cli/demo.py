"""``viditq demo``"""

from pathlib import Path
from typing import Annotated

import typer

from viditq.cli.options import Device, Json, Overwrite, Steps
from viditq.cli.tables import comparison_table
from viditq.cli.terminal import command_line, say, session, write_json

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory to write: new, or empty.")
    ] = Path("viditq-demo"),
    num_images: Annotated[int, typer.Option(min=1, help="Images per pipeline.")] = 12,
    num_videos: Annotated[int, typer.Option(min=1, help="Videos per pipeline.")] = 4,
    steps: Steps = 20,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """All of it on the bundled pipelines: quantize, compare, report. Some minutes on two cores.

    Example:

        viditq demo --out demo
    """
    with session() as track:
        from viditq.report import run_demo

        report, comparisons = run_demo(
            out,
            num_images=num_images,
            num_videos=num_videos,
            steps=steps,
            device=device,
            overwrite=overwrite,
            command=command_line(),
            track=track,
        )
        results = [comparison.to_json() for comparison in comparisons]
        write_json(json, {"report": str(report), "comparisons": results})
        for comparison in comparisons:
            say(comparison_table(comparison), "")
        say(f"Report: {report}")
