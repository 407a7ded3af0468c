"""The table of docs/models.md: how far each full-size model is supported, and what it gains.

Which pipelines there are is read from :data:`~viditq.pipelines.families.FAMILIES`; everything else
from rows that ``viditq bench denoisers`` measured with the variants ``auto``. What was not measured
is a dash, with its reason below the table.
"""

from collections.abc import Callable, Mapping, Sequence

from viditq.bench import models
from viditq.bench.cases import ModelCase
from viditq.bench.results import BenchResult, ModelRow
from viditq.bench.tables import NOTHING, TextTable, number, origin_line, speedup
from viditq.pipelines.families import FAMILIES

__all__ = ["VARIANTS", "support_table"]

VARIANTS = {"bf16": "bf16-auto", "W8A8": "w8a8-auto", "W4A8": "w4a8-auto"}
"""Of each column with a time."""

COLUMNS = (
    "",
    "`--model`",
    "runs in",
    "blocks",
    "tokens",
    *(f"{name}, ms" for name in VARIANTS),
    "weights, GiB",
    "peak, GiB",
)

Rows = Mapping[str, ModelRow]


def support_table(results: Sequence[BenchResult]) -> TextTable:
    """All models of the table of models, those with a pipeline first."""
    cases = sorted(models.MODELS.values(), key=lambda case: case.pipeline not in FAMILIES)
    measured = {case.name: _rows(results, case.name) for case in cases}
    return TextTable(
        "Every model, at full size",
        COLUMNS,
        tuple(_line(case, measured[case.name]) for case in cases),
        (*_notes(cases, measured), *(origin_line(result) for result in results if result.rows)),
    )


def _rows(results: Sequence[BenchResult], model: str) -> Rows:
    """Of one model, by column; what was measured comes before what was not."""
    columns = {variant: column for column, variant in VARIANTS.items()}
    found: dict[str, ModelRow] = {}
    for row in (row for result in results for row in result.rows):
        if isinstance(row, ModelRow) and row.model == model and row.op in columns:
            column = columns[row.op]
            if column not in found or found[column].timing is None:
                found[column] = row
    return found


def _line(case: ModelCase, rows: Rows) -> tuple[str, ...]:
    return (
        case.title,
        f"`{case.name}`",
        f"`{case.pipeline}`" if case.pipeline in FAMILIES else "transformer only",
        _blocks(case, rows.get("W8A8")),
        NOTHING if case.tokens is None else f"{case.tokens:,}",
        *(_time(rows.get("bf16"), rows.get(column)) for column in VARIANTS),
        _sizes(rows, lambda row: row.weight_bytes),
        _sizes(rows, lambda row: row.peak_bytes),
    )


def _blocks(case: ModelCase, row: ModelRow | None) -> str:
    if row is None or row.fused_blocks is None:
        return NOTHING
    if row.fused_blocks in (0, case.num_blocks):
        return "fused" if row.fused_blocks else "drop-in"
    return f"{row.fused_blocks} of {case.num_blocks} fused"


def _time(base: ModelRow | None, row: ModelRow | None) -> str:
    """Milliseconds, and how many times as fast as ``base``."""
    if row is None or row.timing is None:
        return NOTHING
    time = number(row.timing.median_ms)
    if row is base or base is None or base.timing is None:
        return time
    return f"{time} ({speedup(base.timing, row.timing)})"


def _sizes(rows: Rows, size_of: Callable[[ModelRow], int | None]) -> str:
    sizes = [size_of(rows[column]) if column in rows else None for column in VARIANTS]
    if not any(sizes):
        return NOTHING
    return " / ".join(NOTHING if size is None else f"{size / 2**30:.2f}" for size in sizes)


def _notes(cases: Sequence[ModelCase], measured: Mapping[str, Rows]) -> tuple[str, ...]:
    """Why a cell is empty, and what ran without a graph; models with the same reason together."""
    noted: dict[str, list[str]] = {}
    for case in cases:
        columns: dict[str, list[str]] = {}
        for column in VARIANTS:
            if note := _note(measured[case.name].get(column)):
                columns.setdefault(note, []).append(column)
        for note, of in columns.items():
            name = case.name if len(of) == len(VARIANTS) else f"{case.name} in {' and '.join(of)}"
            noted.setdefault(note, []).append(name)
    return tuple(f"{note}: {', '.join(names)}" for note, names in noted.items())


def _note(row: ModelRow | None) -> str | None:
    if row is None:
        return "not measured"
    return row.skipped or (None if row.graph else "without a CUDA graph")
