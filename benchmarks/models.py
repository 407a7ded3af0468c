"""The table of docs/models.md, from benchmarks/results/models-*.json.

    viditq bench denoisers --model latte --variant bf16-auto --variant w8a8-auto \
        --variant w4a8-auto --json benchmarks/results/models-latte.json
    python benchmarks/models.py

Writes it into the page, between its marks; no number is made here.
"""

from pathlib import Path

from viditq.bench import BenchResult, support_table
from viditq.files import write_atomic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def with_table(page: str) -> str:
    """``page`` with today's table between the marks."""
    files = sorted((ROOT / "benchmarks" / "results").glob("models-*.json"))
    table = support_table([BenchResult.load(file) for file in files]).to_markdown()
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    write_atomic(PAGE, with_table(PAGE.read_text("utf-8")))
