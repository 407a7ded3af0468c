"""The command line: one file per command, each a page, each calling one library function.

Nothing heavy is imported before a command runs, so ``viditq --help`` answers at once.
"""

from typing import Annotated

import typer

from viditq import __version__
from viditq.cli.ablate import ablate
from viditq.cli.analyze import analyze
from viditq.cli.bench import bench
from viditq.cli.compare import compare
from viditq.cli.convert_latte import convert_latte
from viditq.cli.convert_opensora import convert_opensora
from viditq.cli.demo import demo
from viditq.cli.doctor import doctor
from viditq.cli.generate import generate
from viditq.cli.inspect import inspect
from viditq.cli.quantize import quantize
from viditq.cli.shootout import shootout

__all__ = ["app", "main"]

app = typer.Typer(
    name="viditq",
    help="Diffusion transformers in 8 and 4 bits, and the proof that nobody sees the difference.",
    epilog="Every command has --help with its options, units and examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(quantize, generate, compare, shootout, ablate),
    *(inspect, analyze, doctor, convert_opensora, convert_latte, demo),
)
for command in COMMANDS:
    app.command(no_args_is_help=command is not demo)(command)
app.add_typer(bench)


def main() -> None:
    """Entry point of the ``viditq`` program."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"viditq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    pass
