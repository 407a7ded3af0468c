"""Results as tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from viditq.bench import TextTable
    from viditq.checkpoint import CheckpointSummary
    from viditq.evaluation import Comparison, Contest, Row

__all__ = ["comparison_table", "contest_table", "layer_table", "speed_tables"]


def comparison_table(comparison: "Comparison") -> Table:
    """One row per pipeline.

    Columns: true bits a weight, size against bf16, PSNR to float and its 95 % interval, SSIM,
    feature distance, and the share of samples that the judge reads as it reads the float sample.
    """
    judged = comparison.float_.judge is not None
    table = Table(title=comparison.pipeline, box=None, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("bits", "size", "PSNR dB", "95 %", "SSIM", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    if judged:
        table.add_column("as float", justify="right", no_wrap=True)
    yardstick = [comparison.float_bf16] if comparison.float_bf16 else []
    for result in (*yardstick, *comparison.results):
        low, high = result.psnr_db_ci
        cells = [
            result.name,
            f"{result.weight_bits:.2f}",
            f"{result.size_bytes / result.float_size_bytes:.2f}×",
            f"{result.psnr_db:.1f}",
            f"{low:.1f}–{high:.1f}",
            f"{result.ssim:.4f}",
            f"{result.feature_distance:.4f}",
        ]
        if judged:
            cells.append(f"{100 * (result.judge or {})['same_as_float']:.1f} %")
        table.add_row(*cells)
    return table


def contest_table(contest: "Contest") -> Table:
    """One row per recipe, two lines each: the means, and their 95 % intervals below.

    Columns: true bits a weight, MB of the quantized layers, PSNR to float, its gain over
    viditq's own recipe (of a ladder: over the row before) and whether 0 is outside the gain's
    interval, SSIM, and the shares of samples that the judge reads as it reads the float sample, and
    as the caption says.
    """
    ladder = contest.kind == "ladder"
    title = f"{contest.pipeline}, {contest.bits}"
    table = Table(title=title, box=None, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("bits", "MB", "PSNR dB", "gain" if ladder else f"over {contest.bits}", "SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    judged = contest.float_.judge is not None
    if judged:
        table.add_column("as float", justify="right", no_wrap=True)
        table.add_column("right", justify="right", no_wrap=True)
    for row in (contest.float_bf16, *contest.rows):
        low, high = row.psnr_db_ci
        cells = [
            row.name.removeprefix(f"{contest.bits}-"),
            f"{row.weight_bits:.2f}",
            f"{row.size_bytes / 1e6:.2f}",
            f"{row.psnr_db:.1f}\n{low:.1f}–{high:.1f}",
            _gain(row),
            f"{row.ssim:.3f}",
        ]
        if judged:
            cells += [_share(row, "same_as_float"), _share(row, "all")]
        ours = not ladder and row.name == contest.bits
        table.add_row(*cells, style="bold" if ours else None)
    return table


def _gain(row: "Row") -> str:
    if row.gain is None:
        return "–"
    low, high = row.gain.psnr_db_ci
    return f"{row.gain.psnr_db:+.1f} {row.gain.outcome}\n{low:+.1f}, {high:+.1f}"


def _share(row: "Row", key: str) -> str:
    found = row.share(key)
    if found is None:
        return "–"
    share, (low, high) = found
    return f"{100 * share:.1f} %\n{100 * low:.0f}–{100 * high:.0f}"


def layer_table(summary: "CheckpointSummary") -> Table:
    """One row per role and format: how many layers, their bytes, and their error."""
    table = Table(box=None)
    table.add_column("role")
    table.add_column("weights")
    table.add_column("activations")
    for name in ("layers", "bytes", "SQNR dB, lowest", "incoherence, highest"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str, str], list] = {}
    for layer in summary.layers.values():
        key = (layer.role, layer.weight_format, layer.activation_format)
        groups.setdefault(key, []).append(layer)
    for (role, weight, activation), layers in groups.items():
        levels = [layer.sqnr_db for layer in layers if layer.sqnr_db is not None]
        before = max(layer.incoherence_before for layer in layers)
        after = max(layer.incoherence_after for layer in layers)
        table.add_row(
            role,
            weight,
            activation,
            str(len(layers)),
            f"{sum(layer.size_bytes for layer in layers):,}",
            f"{min(levels):.1f}" if levels else "–",
            f"{before:.1f} → {after:.1f}",
        )
    return table


def speed_tables(tables: "Sequence[TextTable]") -> list[Table | str]:
    """Tables of text with their notes below.

    Without the column ``check``: what has a time has passed it, and the JSON tells how well.
    """
    shown: list[Table | str] = []
    for text in tables:
        title = escape(text.title)
        table = Table(title=title, box=None, title_justify="left", title_style="bold")
        for number, (name, *cells) in enumerate(zip(text.columns, *text.rows, strict=True)):
            if name == "check":
                continue
            # Where it is narrow, names are folded and numbers are not.
            words = (len(word) for cell in cells for word in cell.split())
            table.add_column(
                name,
                justify="right" if number else "left",
                overflow="fold",
                min_width=max(words, default=0) if number else None,
            )
        for row in text.rows:
            shown_cells = zip(text.columns, row, strict=True)
            table.add_row(*(escape(cell) for name, cell in shown_cells if name != "check"))
        shown += [table, *map(escape, text.notes), ""]
    return shown
