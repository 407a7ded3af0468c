"""Values of a benchmark, and their file."""

import pytest
from pydantic import ValidationError

from checks import refuses
from viditq.bench.record import collect
from viditq.bench.results import BenchResult, ModelRow, Origin, ProductRow, RowOpRow, Timing
from viditq.errors import InputError

TIMING = Timing(median_ms=1.0, p20_ms=0.9, p80_ms=1.2, repetitions=20)
ORIGIN = Origin(
    created="2026-01-02T03:04:05+00:00",
    command="viditq bench ops",
    commit="abc",
    versions={"torch": "2.11.0"},
    hardware={"gpu": "NVIDIA H200"},
    device="cuda",
)


def test_round_trip(tmp_path):
    result = BenchResult(
        kind="ops",
        origin=ORIGIN,
        copy_bytes_per_s=4e12,
        rows=(
            ProductRow(op="int8_linear", case="a", m=1, n=2, k=3, timing=TIMING, tops=9.0),
            RowOpRow(
                op="quantize_rows", case="a", m=1, k=3, balanced=True, moved_bytes=9, skipped="no"
            ),
            ModelRow(op="w8a8", model="flux-dev", part="denoiser", timing=TIMING, peak_bytes=5),
        ),
    )
    assert BenchResult.load(result.save(tmp_path / "deep" / "r.json")) == result


@pytest.mark.parametrize("fields", [{}, {"timing": TIMING, "skipped": "it failed"}])
def test_a_row_has_a_timing_or_a_reason(fields):
    with pytest.raises(ValidationError, match="either a timing or the reason"):
        ProductRow(op="int8_linear", case="a", m=1, n=2, k=3, **fields)


def test_other_files(tmp_path):
    with refuses(InputError, "no.json"):
        BenchResult.load(tmp_path / "no.json")
    (tmp_path / "a.json").write_text('{"kind": "races"}')
    with refuses(InputError, "a.json", "kind"):
        BenchResult.load(tmp_path / "a.json")


def test_a_place_that_cannot_be_written_costs_no_measurement(tmp_path):
    (tmp_path / "file").write_text("")

    def rows():
        pytest.fail("measured before the file was tried")
        yield

    with pytest.raises(OSError):
        collect("ops", rows(), ORIGIN, file=tmp_path / "file" / "ops.json")
