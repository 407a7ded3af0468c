"""The verdict names what a reader should know, and numbers read as people write them."""

import pytest

from viditq.evaluation import SampleRow
from viditq.report.words import FILTERS, best, other_reading, verdict


def test_verdict_names_the_nearest_and_the_nearest_among_the_smallest(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path)
    # scales make a naive checkpoint a little smaller than a balanced one; that is no merit
    smaller = comparison.results[2].model_copy(update={"weight_bits": 4.10})
    results = (*comparison.results[:2], smaller, comparison.results[3])
    first, second = verdict(comparison.model_copy(update={"results": results}))
    assert (first["name"], second["name"]) == ("w8a8", "w4a8")
    assert "nearer to float than the float pipeline run in bf16" in first["detail"]
    assert "farther from float" in second["detail"]
    assert second["what"] == "Nearest in about 4 bits"


def test_no_claim_within_the_noise(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, names=("w8a8",))
    [result] = comparison.results
    yardstick = comparison.float_bf16
    rows = [
        row.model_copy(update={"psnr_db": (row.psnr_db or 0) + gain})
        for row, gain in zip(yardstick.samples, (3.0, -2.0, 4.0, -3.5), strict=True)
    ]
    near = result.model_copy(update={"samples": tuple(rows)})
    [finding] = verdict(comparison.model_copy(update={"results": (near,)}))
    assert "about as near as the float pipeline run in bf16" in finding["detail"]


def test_one_finding_when_the_smallest_is_the_nearest(make_comparison, tmp_path):
    [only] = verdict(make_comparison(tmp_path, names=("w4a8",), judged=False, bf16=False))
    assert only["name"] == "w4a8"
    assert only["detail"] == ""


def test_best_only_where_one_is_alone(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path)
    found = best(comparison)
    assert found["psnr_db"] == found["feature_distance"] == "w8a8"
    assert "size" not in found  # two have the same
    assert "flow_difference" not in found
    assert best(comparison.model_copy(update={"results": comparison.results[:1]})) == {}


def test_other_reading():
    def row(shape, same):
        return SampleRow(
            index=0, seed=0, prompt="", reading={"shape": shape, "size": "big"}, same_as_float=same
        )

    assert other_reading(row("star", False), row("moon", None)) == "shape: star"
    assert other_reading(row("moon", True), row("moon", None)) == ""


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("percent", 1.0, "100\N{NO-BREAK SPACE}%"),
        ("percent", 0.973, "97.3\N{NO-BREAK SPACE}%"),
        ("bits", 4.0, "4"),
        ("bits", 8.126, "8.13"),
        ("bytes", 999, "999 B"),
        ("bytes", 4_340_000, "4.34 MB"),
        ("bytes", 20_500_000_000, "20.5 GB"),
    ],
)
def test_numbers(name, value, text):
    assert FILTERS[name](value) == text


def test_interval_of_shares_says_the_unit_once():
    assert FILTERS["interval"]((0.8, 1.0), "percent") == "80.0 – 100"
