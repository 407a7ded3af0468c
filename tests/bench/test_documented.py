"""The tables in docs/performance.md are those of the results in benchmarks/results."""

import json
from pathlib import Path

from viditq.bench import BenchResult, markdown

ROOT = Path(__file__).parents[2]
RESULTS = (
    "ops",
    "denoiser-pixart-sigma",
    "denoiser-latte",
    "denoiser-flux-dev",
    "denoiser-wan-1.3b",
    "denoiser-wan-14b",
    "denoiser-cogvideox-2b",
    "blocks-pixart-sigma",
    "blocks-wan-1.3b",
    "blocks-flux-dev",
)


def test_attention_is_the_result():
    told = json.loads((ROOT / "benchmarks" / "results" / "attention.json").read_text("utf-8"))
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert told["rows"]
    for row in told["rows"]:
        times = f"{row['torch_ms']:.3f} ms | {row['ours_ms']:.3f} ms | {row['times_torch']:.2f} ×"
        assert f"| {row['case']} | {times} |" in page


def test_tables_are_the_results():
    files = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in RESULTS]
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert page.endswith(markdown([BenchResult.load(file) for file in files]).rstrip("\n") + "\n")
