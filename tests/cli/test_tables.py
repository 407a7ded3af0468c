"""Tables of text on a terminal."""

from io import StringIO

from rich.console import Console

from viditq.bench import TextTable
from viditq.cli.tables import speed_tables


def shown(table, width):
    console = Console(file=StringIO(), width=width)
    console.print(*speed_tables([table]))
    return console.file.getvalue()


def test_numbers_are_not_cut_and_brackets_are_not_markup():
    rows = (("bf16 F.linear", "100.12–200.34", "codes equal"),)
    table = TextTable("a [b]", ("", "ms", "check"), rows, ("x: [/no]",))
    text = shown(table, 30)
    assert all(part in text for part in ("a [b]", "100.12–200.34", "x: [/no]"))


def test_a_table_without_rows():
    assert "ms" in shown(TextTable("a", ("", "ms"), ()), 40)
