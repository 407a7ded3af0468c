"""Writes the report: one HTML file that needs nothing else, and a sheet of the samples.

Everything is inline: style, figures as SVG, images and films as data URLs. The page has one short
script, which starts the films together; without it they still play. What a comparison lacks
(readings of a judge, diagnostics of layers) is left out, never shown empty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from viditq.diagnostics import LayerDiagnostics
from viditq.evaluation import Comparison, Contest, Result, Row, load_comparison
from viditq.evaluation.measure import FLOAT
from viditq.evaluation.samples import read_sample
from viditq.files import write_atomic
from viditq.report import figures, words
from viditq.report.layers import grid, load_layers, most_uneven
from viditq.report.pictures import difference, picture
from viditq.report.sheet import sheet

__all__ = ["REPORT_FILE", "SHEET_FILE", "write_contest_report", "write_report"]

REPORT_FILE = "report.html"
SHEET_FILE = "sheet.png"
_SHOWN = 6  # prompts
_PICTURES = 40  # in all, about: a phone's browser plays no more films than that
_MOST_BESIDE = 7  # pictures in a line
_TONES = 6  # colours in style.css
_GREY = "rest"


@dataclass(frozen=True)
class Column:
    """One pipeline as the page shows it: its name, colour class, and numbers but for the float."""

    name: str
    tone: str
    result: Result | None


def write_contest_report(out: str | Path) -> Path:
    """Write the report of the finished contest in ``out`` beside its ``contest.json``."""
    return write_report(load_comparison(out), out, Contest.load(out))


def write_report(
    comparisons: Comparison | Sequence[Comparison], out: str | Path, contest: Contest | None = None
) -> Path:
    """Write ``report.html`` and ``sheet.png`` into the directory ``out``; returns the page.

    Args:
        comparisons: One or more, as ``compare`` returns them or ``Comparison.load`` reads them;
            each becomes a section.
        out: Made when it is missing; files of these two names are replaced.
        contest: What the comparison, one then, was made for: who is nearest comes first.

    Raises InputError when a file of a comparison's folder is damaged.
    """
    if isinstance(comparisons, Comparison):
        comparisons = [comparisons]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("viditq.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(words.FILTERS)
    page = environment.get_template("report.html.j2").render(
        title=" · ".join(comparison.pipeline for comparison in comparisons),
        sections=[_section(comparison, contest) for comparison in comparisons],
        provenance=comparisons[0].provenance,
    )
    write_atomic(Path(out) / SHEET_FILE, sheet(comparisons))
    return write_atomic(Path(out) / REPORT_FILE, page)


def _section(comparison: Comparison, contest: Contest | None) -> dict[str, object]:
    columns = _columns(comparison)
    results = [column.result for column in columns if column.result is not None]
    spans = [end for result in results for end in result.psnr_db_ci]
    low, high = min(spans) - 1, max(spans) + 1
    shown = _shown(comparison)
    return {
        "comparison": comparison,
        "contest": contest,
        "standings": "" if contest is None else _standings(contest, columns),
        "columns": columns,
        "per_line": _per_line(len(columns)),
        "verdict": words.verdict(comparison),
        "best": words.best(comparison),
        "bars": {
            column.name: figures.interval_bar(
                column.result.psnr_db, column.result.psnr_db_ci, column.tone, low, high
            )
            for column in columns
            if column.result is not None
        },
        "rows": [_sample_row(comparison, columns, index, note) for index, note in shown],
        "all_seeds": all(column.tone != _GREY for column in columns),
        "seeds": figures.psnr_by_seed(
            [
                figures.Series(
                    column.name,
                    column.tone,
                    column.result.psnr_by_seed,
                    column.result.psnr_db,
                    column.result.psnr_db_ci,
                )
                for column in columns
                if column.result is not None and column.tone != _GREY
            ],
            comparison.provenance.seed,
        ),
        **_layer_figures(comparison),
    }


def _columns(comparison: Comparison) -> list[Column]:
    """Of many quantized pipelines, the nearest to float have a colour of their own."""
    columns = [Column("float", "float", None)]
    if comparison.float_bf16 is not None:
        columns.append(Column("float bf16", "bf16", comparison.float_bf16))
    nearest = sorted(comparison.results, key=lambda result: -result.psnr_db)[:_TONES]
    tones = (f"q{index}" for index in range(_TONES))
    for result in comparison.results:
        columns.append(Column(result.name, next(tones) if result in nearest else _GREY, result))
    return columns


def _per_line(count: int) -> int:
    """Pictures beside each other: all, or lines of one length that are wide enough to look at."""
    return math.ceil(count / math.ceil(count / _MOST_BESIDE))


def _standings(contest: Contest, columns: Sequence[Column]) -> Markup:
    """A shootout by PSNR, the yardstick at its place; a ladder from its first step on."""
    tones = {column.name: column.tone for column in columns}
    rows = [contest.float_bf16, *contest.rows]
    ladder = contest.kind == "ladder"
    if not ladder:
        rows.sort(key=lambda row: -row.psnr_db)
    shown = [
        figures.Standing(
            name=row.name.replace("_", " "),
            tone=tones[row.name] if _is_ours(row, contest) else _GREY,
            mean=row.psnr_db,
            interval=row.psnr_db_ci,
            bits=f"{row.weight_bits:.2f}",
            gain=words.gain(row.gain),
            ours=_is_ours(row, contest),
        )
        for row in rows
    ]
    return figures.standings(
        shown, "over the row before, dB" if ladder else f"over {contest.bits}, dB"
    )


def _is_ours(row: Row, contest: Contest) -> bool:
    return contest.kind == "shootout" and row.name == contest.bits


def _shown(comparison: Comparison) -> list[tuple[int, str]]:
    """The first samples, and the one that quantization changed most, wherever it is."""
    count = comparison.provenance.num
    columns = len(_columns(comparison))
    most = max(2, min(_SHOWN, count, _PICTURES // columns))
    nearest = max(comparison.results, key=lambda result: result.psnr_db)
    worst = min(nearest.samples, key=lambda row: row.psnr_db or 0.0).index
    shown = list(range(min(count, most)))
    if worst not in shown:
        shown[-1] = worst
    note = f"the sample that {nearest.name} changed most, of {count}"
    return [(index, note if index == worst and count > 1 else "") for index in shown]


def _sample_row(
    comparison: Comparison, columns: Sequence[Column], index: int, note: str
) -> dict[str, object]:
    folder = comparison.folder / "samples"
    reference = read_sample(folder / FLOAT, index)
    row = comparison.float_.samples[index]
    cells = []
    for column in columns:
        name = FLOAT if column.result is None else column.result.name
        sample = reference if column.result is None else read_sample(folder / name, index)
        cell: dict[str, object] = {
            "column": column,
            "picture": picture(sample, f"{column.name}: {row.prompt}", class_="sample"),
            "difference": None,
            "row": None,
            "reads": "",
        }
        if column.result is not None:
            measured = column.result.samples[index]
            cell["row"] = measured
            cell["reads"] = words.other_reading(measured, row)
            if comparison.kind == "image":
                cell["difference"] = picture(
                    difference(sample, reference),
                    f"{column.name} minus float: {row.prompt}",
                    class_="difference",
                )
        cells.append(cell)
    return {"prompt": row.prompt, "seed": row.seed, "note": note, "cells": cells}


def _layer_figures(comparison: Comparison) -> dict[str, object]:
    """Grids of layer errors on one scale, and the inputs of the most uneven layers."""
    layers = {
        result.name: load_layers(comparison.folder / "layers" / f"{result.name}.json")
        for result in comparison.results
    }
    levels = [
        layer.sqnr_db
        for one in layers.values()
        for layer in one.values()
        if layer.sqnr_db is not None
    ]
    if not levels:
        return {"grids": [], "scale": None, "spreads": [], "spread_name": ""}
    low, high = min(levels), max(levels)
    grids = [
        (name, figures.layer_errors(grid(one), low, high)) for name, one in layers.items() if one
    ]
    name = _most_balanced(layers)
    uneven = most_uneven(layers[name], 6)
    ceiling = max((_largest_spread(layer) for _, layer in uneven), default=1.0) * 1.2
    spreads: list[tuple[str, LayerDiagnostics, Markup]] = [
        (layer_name, layer, figures.activation_spread(layer, ceiling))
        for layer_name, layer in uneven
    ]
    return {"grids": grids, "scale": (low, high), "spreads": spreads, "spread_name": name}


def _most_balanced(layers: dict[str, dict[str, LayerDiagnostics]]) -> str:
    def gain(name: str) -> float:
        return sum(one.incoherence_before - one.incoherence_after for one in layers[name].values())

    return max(layers, key=gain)


def _largest_spread(layer: LayerDiagnostics) -> float:
    return max(
        spread.max / max(spread.p50, 1e-9)
        for step in layer.steps
        for spread in (step.before, step.after)
    )
