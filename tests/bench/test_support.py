"""The table of docs/models.md: what is in it, and that the page has today's."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from viditq.bench import BenchResult, bench_models, support, support_table
from viditq.bench.results import ModelRow, Origin, Timing
from viditq.bench.variants import VARIANTS

ROOT = Path(__file__).parents[2]
VARIANT_NAMES = tuple(support.VARIANTS.values())


def result(*rows, command="bench"):
    origin = Origin(
        created="2026-01-02T03:04:05+00:00",
        command=command,
        commit="abc",
        versions={"torch": "2.11.0"},
        hardware={"gpu": "NVIDIA H200"},
        device="cuda",
    )
    return BenchResult(kind="denoisers", origin=origin, rows=rows)


def row(op, ms=None, *, model="small-flux", graph=True, **fields):
    timing = None if ms is None else Timing(median_ms=ms, p20_ms=ms, p80_ms=ms, repetitions=3)
    return ModelRow(op=op, model=model, part="denoiser", timing=timing, graph=graph, **fields)


def cells(table, name):
    [line] = [line for line in table.rows if line[1] == f"`{name}`"]
    return dict(zip(table.columns, line, strict=True))


def test_a_measured_model():
    gib = 2**30
    table = support_table(
        [
            result(
                row("bf16-auto", 200.0, weight_bytes=8 * gib, peak_bytes=10 * gib, fused_blocks=0),
                row("w8a8-auto", 100.0, weight_bytes=4 * gib, peak_bytes=6 * gib, fused_blocks=5),
                row("w4a8-auto", 80.0, weight_bytes=2 * gib, peak_bytes=4 * gib, fused_blocks=5),
                row("w8a8", 50.0),
            )
        ]
    )
    line = cells(table, "small-flux")
    assert line[""] == "FLUX, small"
    assert line["blocks"] == "fused"
    assert line["bf16, ms"] == "200.0"
    assert line["W8A8, ms"] == "100.0 (2.00×)"
    assert line["W4A8, ms"] == "80.0 (2.50×)"
    assert line["weights, GiB"] == "8.00 / 4.00 / 2.00"
    assert line["peak, GiB"] == "10.00 / 6.00 / 4.00"
    assert not any("small-flux" in note for note in table.notes)
    assert table.notes[-1].startswith("`bench`; NVIDIA H200; torch 2.11.0; commit abc; 2026-01-02")


@pytest.mark.parametrize(("fused", "told"), [(0, "drop-in"), (1, "1 of 5 fused"), (5, "fused")])
def test_blocks(fused, told):
    table = support_table([result(row("w8a8-auto", 1.0, fused_blocks=fused))])
    assert cells(table, "small-flux")["blocks"] == told


def test_what_is_missing_has_a_reason():
    rows = (
        row("bf16-auto", 200.0, graph=False, peak_bytes=2**30),
        row("w8a8-auto", skipped="out of memory"),
    )
    table = support_table([result(*rows)])
    line = cells(table, "small-flux")
    assert (line["W8A8, ms"], line["W4A8, ms"]) == ("–", "–")
    assert line["peak, GiB"] == "1.00 / – / –"
    assert "without a CUDA graph: small-flux in bf16" in table.notes
    assert "out of memory: small-flux in W8A8" in table.notes
    [unmeasured] = [note for note in table.notes if note.startswith("not measured: ")]
    assert unmeasured.endswith("small-flux in W4A8, small-cogvideox, small-autoencoder")


def test_a_time_comes_before_a_reason():
    failed, right = row("w8a8-auto", skipped="out of memory"), row("w8a8-auto", 100.0)
    for rows in ((failed, right), (right, failed)):
        table = support_table([result(one) for one in rows])
        assert cells(table, "small-flux")["W8A8, ms"] == "100.0"


def test_models_with_a_pipeline_come_first(monkeypatch):
    monkeypatch.undo()
    where = [line[2] for line in support_table([]).rows]
    without = [place == "transformer only" for place in where]
    assert without == sorted(without)
    assert "`WanPipeline`" in where


def test_a_run_gives_a_line_without_a_dash():
    """On the CPU no memory is measured; all other cells are there."""
    measured = bench_models(
        "denoisers", "cpu", models=["small-pixart"], variants=VARIANT_NAMES, budget_s=0.01
    )
    line = cells(support_table([measured]), "small-pixart")
    del line["tokens"], line["peak, GiB"]
    assert "–" not in line.values(), line


def test_variants_exist():
    assert set(VARIANT_NAMES) <= set(VARIANTS)


def test_the_page_has_todays_table(monkeypatch):
    monkeypatch.undo()
    spec = spec_from_file_location("models_page", ROOT / "benchmarks" / "models.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text("utf-8")
    assert script.with_table(page) == page
    for paper in ("PixArt-α", "PixArt-Σ", "Latte", "Open-Sora 1.0", "Open-Sora 1.2"):
        assert f"\n| {paper}" in page
