"""``viditq bench``"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from viditq.cli.options import Json
from viditq.cli.tables import speed_tables
from viditq.cli.terminal import command_line, say, session

__all__ = ["bench"]

bench = typer.Typer(
    name="bench",
    help="How fast ops, blocks and whole denoisers are here, beside their peers.",
    no_args_is_help=True,
)

Device = Annotated[str, typer.Option(help="Where to compute: cuda, cuda:N or cpu.")]
TorchAo = Annotated[bool, typer.Option("--torchao", help="Also torchao's, compiled: minutes more.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A model of docs/models.md, such as pixart-sigma (a wrong name lists them); may be "
        "given several times; by default a few of them.",
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="bf16, w8a8 or w4a8, also with -fused, -unbalanced, -static, -compiled, -graph (a "
        "wrong name lists them); may be given several times; all by default.",
    ),
]
Backend = Annotated[
    Literal["hopper", "triton", "reference"] | None,
    typer.Option(help="Implementation of viditq's ops on CUDA; by default the fastest here."),
]
Budget = Annotated[
    float, typer.Option(min=0.1, metavar="S", help="Seconds for each measurement's repetitions.")
]
_KEPT = "What was measured so far is in the file of --json, if one was named."


@bench.command("ops")
def bench_ops(
    device: Device = "cuda",
    quick: Annotated[
        bool, typer.Option("--quick", help="Two shapes of each kind, in below 1 GiB.")
    ] = False,
    torchao: TorchAo = False,
    backend: Backend = None,
    json: Json = None,
) -> None:
    """Matrix products and row ops at the shapes of full-size models.

    An op whose result is wrong gets no speed. The JSON is written after every row.

    Example:

        viditq bench ops --json ops.json
    """
    with session(_KEPT) as track:
        from viditq import bench as library

        result = library.bench_ops(
            device,
            quick=quick,
            torchao=torchao,
            backend=backend,
            file=json,
            command=command_line(),
            track=track,
        )
        say(*speed_tables(library.tables(result)))


@bench.command("blocks")
def bench_blocks(
    model: Models = None,
    variant: Variants = None,
    device: Device = "cuda",
    torchao: TorchAo = False,
    backend: Backend = None,
    budget: Budget = 2.0,
    json: Json = None,
) -> None:
    """One block of each kind of full-size models with random weights.

    Example:

        viditq bench blocks --model pixart-sigma --json blocks.json
    """
    _models("blocks", model, variant, device, torchao, backend, budget, json)


@bench.command("denoisers")
def bench_denoisers(
    model: Models = None,
    variant: Variants = None,
    device: Device = "cuda",
    torchao: TorchAo = False,
    backend: Backend = None,
    budget: Budget = 10.0,
    json: Json = None,
) -> None:
    """One denoising step of full-size models with random weights.

    Example:

        viditq bench denoisers --model flux-dev --model latte --json denoisers.json
    """
    _models("denoisers", model, variant, device, torchao, backend, budget, json)


def _models(
    kind: Literal["blocks", "denoisers"],
    models: list[str] | None,
    variants: list[str] | None,
    device: str,
    torchao: bool,
    backend: str | None,
    budget_s: float,
    json: Path | None,
) -> None:
    with session(_KEPT) as track:
        from viditq import bench as library

        result = library.bench_models(
            kind,
            device,
            models=models or (),
            variants=variants or (),
            torchao=torchao,
            backend=backend,
            budget_s=budget_s,
            file=json,
            command=command_line(),
            track=track,
        )
        say(*speed_tables(library.tables(result)))
