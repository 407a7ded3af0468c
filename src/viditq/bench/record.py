"""Keeping rows as they come: a run that is stopped keeps what it measured."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from viditq.bench.checks import CheckFailed
from viditq.bench.results import BenchResult, Kind, Measured, Origin, Row
from viditq.bench.timing import TimeUp
from viditq.evaluation import provenance

__all__ = ["CannotRun", "collect", "explain", "guarded", "origin"]

R = TypeVar("R", bound=Measured)


class CannotRun(Exception):
    """What was to be measured needs something that is not here; the message says what."""


def origin(device: torch.device, command: str | None, backend: str | None) -> Origin:
    """What makes the numbers of this run."""
    return Origin(
        created=provenance.now(),
        command=command,
        commit=provenance.commit(),
        versions=provenance.versions(),
        hardware=provenance.hardware(str(device)),
        device=str(device),
        backend=backend,
    )


def collect(
    kind: Kind,
    rows: Iterable[Row],
    made_by: Origin,
    *,
    copy_bytes_per_s: float | None = None,
    file: str | Path | None = None,
) -> BenchResult:
    """Take rows while they are measured; after each one ``file``, if given, is written again.

    It is written once before, so that a place that cannot be written costs no measurement.
    """
    result = BenchResult(kind=kind, origin=made_by, copy_bytes_per_s=copy_bytes_per_s)
    if file is not None:
        result.save(file)
    for row in rows:
        result = result.model_copy(update={"rows": (*result.rows, row)})
        if file is not None:
            result.save(file)
    return result


def guarded(row: Callable[..., R], measured: Callable[[], Mapping[str, Any]]) -> R:
    """``row`` with the fields that ``measured`` returns, or with the reason of its failure.

    Everything that may be wrong with one kernel, compiler or library ends here: the next row
    is measured all the same.
    """
    try:
        return row(**measured())
    except (Exception, TimeUp) as error:
        return row(skipped=explain(error))


def explain(error: BaseException) -> str:
    """Why there is no number, in one line."""
    if isinstance(error, (CannotRun, CheckFailed, TimeUp)):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"[:300]
