"""Tables from one fixed result of each kind: text in the terminal, Markdown in the docs."""

from pathlib import Path

from viditq.bench import BenchResult, markdown, tables

FOLDER = Path(__file__).parent
RESULTS = ("ops", "denoisers")


def test_markdown():
    results = [BenchResult.load(FOLDER / f"{name}.json") for name in RESULTS]
    assert markdown(results) == (FOLDER / "performance.md").read_text("utf-8")


def test_tables_are_rectangles():
    for name in RESULTS:
        for table in tables(BenchResult.load(FOLDER / f"{name}.json")):
            assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_run_without_rows_has_no_tables():
    result = BenchResult.load(FOLDER / "ops.json").model_copy(update={"rows": ()})
    assert tables(result) == []
    assert markdown([result]).count("\n") == 3
