"""Nothing half-written under a final name, nothing foreign deleted."""

import os
from pathlib import Path

import pytest

from viditq.errors import InputError
from viditq.files import atomic_directory, check_replaceable, write_atomic

MARKER = "made.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(path: Path, text: str, **kwargs) -> None:
    with atomic_directory(path, marker=MARKER, **kwargs) as partial:
        (partial / MARKER).write_text(text)


def test_text_and_bytes(tmp_path):
    assert write_atomic(tmp_path / "a" / "b.txt", "grün").read_text(encoding="utf-8") == "grün"
    assert write_atomic(tmp_path / "a" / "b.txt", b"\0\1").read_bytes() == b"\0\1"
    assert names(tmp_path / "a") == ["b.txt"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = write_atomic(tmp_path / "a.txt", "old")

    def full(*_args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_directory_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_directory(out, marker=MARKER) as partial:
        (partial / MARKER).write_text("1")
        assert not out.exists()
    assert names(out) == [MARKER]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_directory_of_a_failed_block_is_gone(tmp_path, error):
    with (
        pytest.raises(error),
        atomic_directory(tmp_path / "out", marker=MARKER) as partial,
    ):
        (partial / "big.bin").write_bytes(b"x")
        raise error
    assert names(tmp_path) == []


def test_overwrite_replaces_only_its_own_kind(tmp_path):
    out = tmp_path / "out"
    make(out, "1")
    with pytest.raises(InputError, match="--overwrite"):
        make(out, "2")
    make(out, "2", overwrite=True)
    assert (out / MARKER).read_text() == "2"

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="holds other files"):
        make(photos, "3", overwrite=True)
    assert names(photos) == ["cat.jpg"]
    assert names(tmp_path) == ["out", "photos"]


def test_failed_overwrite_keeps_the_old_directory(tmp_path):
    out = tmp_path / "out"
    make(out, "1")
    with (
        pytest.raises(RuntimeError),
        atomic_directory(out, marker=MARKER, overwrite=True),
    ):
        raise RuntimeError
    assert (out / MARKER).read_text() == "1"


def test_empty_directory_is_free_and_a_file_is_not(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    make(empty, "1")
    assert names(empty) == [MARKER]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        check_replaceable(tmp_path / "file", marker=MARKER, overwrite=True)
