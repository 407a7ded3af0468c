"""Prompt files: what counts as a prompt, and what is said about a bad file."""

import pytest

from viditq.errors import InputError
from viditq.prompts import hash_prompts, read_prompts


def test_comments_and_blank_lines_are_skipped(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# comment\r\n\r\n  a red star  \r\na café at night\r\n#last".encode())
    assert read_prompts(file) == ["a red star", "a café at night"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has no prompts"), (b"# only\n\n", "has no prompts"), (b"\xff\xfe\x00", "not UTF-8")],
)
def test_bad_file_is_named(tmp_path, content, message):
    file = tmp_path / "p.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"p\.txt.*{message}"):
        read_prompts(file)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.txt cannot be read: No such file"):
        read_prompts(tmp_path / "nothing.txt")


def test_hash_depends_on_order_and_bounds():
    assert hash_prompts(["a", "b"]) != hash_prompts(["b", "a"])
    assert len(hash_prompts(["a"])) == 64
