"""Results as tables of text: for the terminal, and as Markdown for docs/performance.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from viditq.bench.models import MODELS
from viditq.bench.products import BF16, FP8, INT4_LINEAR, INT8_LINEAR
from viditq.bench.results import BenchResult, Measured, ModelRow, ProductRow, RowOpRow, Timing

__all__ = ["NOTHING", "TextTable", "markdown", "number", "origin_line", "speedup", "tables"]

NOTHING = "–"


@dataclass(frozen=True)
class TextTable:
    """A titled table; the first column holds names, the others numbers.

    ``notes`` are sentences below it: what was skipped, and why.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """The table with its title as a heading and its notes as a list."""
        lines = [
            f"### {self.title}",
            "",
            _line(self.columns),
            "|---" + "|---:" * (len(self.columns) - 1) + "|",
            *map(_line, self.rows),
        ]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def tables(result: BenchResult) -> list[TextTable]:
    """The tables of one run, in the order in which it measured."""
    found: list[TextTable] = []
    products = [row for row in result.rows if isinstance(row, ProductRow)]
    cases = {case: [row for row in products if row.case == case] for case in _cases(products)}
    if len(cases) > 1:
        found += [_rates(cases), _ratios(cases)]
    found += [_products(rows) for rows in cases.values()]
    row_ops = [row for row in result.rows if isinstance(row, RowOpRow)]
    if row_ops:
        found.append(_row_ops(row_ops, result.copy_bytes_per_s))
    steps = [row for row in result.rows if isinstance(row, ModelRow)]
    for model, part in dict.fromkeys((row.model, row.part) for row in steps):
        found.append(_steps([row for row in steps if (row.model, row.part) == (model, part)]))
    return found


def markdown(results: Sequence[BenchResult]) -> str:
    """All tables of some runs, each run under a line that says what made it."""
    parts: list[str] = []
    for kind, same in groupby(results, lambda result: result.kind):
        parts.append(f"## {kind.capitalize()}\n")
        for result in same:
            parts.append(origin_line(result) + "\n")
            parts += [table.to_markdown() for table in tables(result)]
    return "\n".join(parts)


def origin_line(result: BenchResult) -> str:
    """What made the numbers of a run."""
    made = result.origin
    chip = made.hardware.get("gpu") or made.hardware.get("cpu", "")
    names = ("torch", "triton", "diffusers", "torchao")
    versions = ", ".join(f"{n} {made.versions[n]}" for n in names if n in made.versions)
    command = f"`{made.command}`; " if made.command else ""
    return f"{command}{chip}; {versions}; commit {made.commit or 'unknown'}; {made.created[:10]}."


def _cases(rows: Sequence[ProductRow]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows))


def _rates(cases: Mapping[str, Sequence[ProductRow]]) -> TextTable:
    """All shapes at a glance."""
    ops = list(dict.fromkeys(row.op for rows in cases.values() for row in rows))
    lines: list[tuple[str, ...]] = []
    for case, rows in cases.items():
        tops = {row.op: row.tops for row in rows}
        lines.append((case, *(_rate(tops.get(op)) for op in ops)))
    return TextTable("Matrix products, 10¹² operations/s", ("", *ops), tuple(lines))


def _ratios(cases: Mapping[str, Sequence[ProductRow]]) -> TextTable:
    """How our products compare: above 1 is faster."""
    pairs = ((INT8_LINEAR, BF16), (INT8_LINEAR, FP8), (INT4_LINEAR, INT8_LINEAR))
    lines: list[tuple[str, ...]] = []
    for case, rows in cases.items():
        timings = {row.op: row.timing for row in rows}
        speedups = (speedup(timings.get(theirs), timings.get(ours)) for ours, theirs in pairs)
        lines.append((case, *speedups))
    columns = ("", "int8 vs bf16", "int8 vs fp8", "int4 vs int8")
    return TextTable("Matrix products, speed", columns, tuple(lines))


def _products(rows: Sequence[ProductRow]) -> TextTable:
    first = rows[0]
    base = next((row.timing for row in rows if row.op == BF16), None)
    return TextTable(
        f"{first.case}: M = {first.m}, N = {first.n}, K = {first.k}",
        ("", "ms", "p20–p80", "TOP/s", "vs bf16", "MiB", "check"),
        tuple(
            (
                row.op,
                *_time(row.timing),
                _rate(row.tops),
                speedup(base, row.timing),
                _mebibytes(row.peak_bytes),
                row.check or NOTHING,
            )
            for row in rows
        ),
        _notes({row.op: row for row in rows}),
    )


def _row_ops(rows: Sequence[RowOpRow], copy_bytes_per_s: float | None) -> TextTable:
    copy = "" if copy_bytes_per_s is None else f" ({copy_bytes_per_s / 1e12:.3g} TB/s)"
    return TextTable(
        f"Row ops against a copy{copy}",
        ("", "M × K", "balanced", "ms", "p20–p80", "of a large copy", "of an equal copy", "check"),
        tuple(
            (
                f"{row.case}, {row.op}",
                f"{row.m} × {row.k}",
                "yes" if row.balanced else "no",
                *_time(row.timing),
                NOTHING if row.copy_share is None else f"{row.copy_share:.0%}",
                NOTHING if row.equal_copy_share is None else f"{row.equal_copy_share:.0%}",
                row.check or NOTHING,
            )
            for row in rows
        ),
        _notes({f"{r.case}, {r.op}{', balanced' if r.balanced else ''}": r for r in rows}),
    )


def _steps(rows: Sequence[ModelRow]) -> TextTable:
    first = rows[0]
    eager = next((row.timing for row in rows if row.op == "bf16"), None)
    compiled = next((row.timing for row in rows if row.op == "bf16-compiled"), None)
    title = MODELS[first.model].title if first.model in MODELS else first.model
    attention = sorted({name for row in rows for name in row.attention})
    return TextTable(
        f"{title}: {first.part}" + (f" (attention: {', '.join(attention)})" if attention else ""),
        (
            "",
            "ms",
            "p20–p80",
            "vs bf16",
            "vs compiled",
            "weights MiB",
            "peak MiB",
            "check",
        ),
        tuple(
            (
                row.op,
                *_time(row.timing),
                speedup(eager, row.timing),
                speedup(compiled, row.timing),
                _mebibytes(row.weight_bytes),
                _mebibytes(row.peak_bytes),
                row.check or NOTHING,
            )
            for row in rows
        ),
        _notes({row.op: row for row in rows}),
    )


def _notes(rows: Mapping[str, Measured]) -> tuple[str, ...]:
    """Rows without a timing, by name, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.skipped is not None:
            reasons.setdefault(row.skipped, []).append(name)
    return tuple(f"{'; '.join(names)}: {why}" for why, names in reasons.items())


def _time(timing: Timing | None) -> tuple[str, str]:
    if timing is None:
        return NOTHING, NOTHING
    return number(timing.median_ms), f"{number(timing.p20_ms)}–{number(timing.p80_ms)}"


def _rate(tops: float | None) -> str:
    return NOTHING if tops is None else f"{tops:.4g}"


def number(ms: float) -> str:
    """Milliseconds, three or four digits."""
    return f"{ms:.1f}" if ms >= 99.95 else f"{ms:#.3g}"


def speedup(base: Timing | None, timing: Timing | None) -> str:
    """How many times as fast as ``base``."""
    if base is None or timing is None:
        return NOTHING
    return f"{base.median_ms / timing.median_ms:.2f}×"


def _mebibytes(size: int | None) -> str:
    return NOTHING if size is None else f"{size / 2**20:,.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
