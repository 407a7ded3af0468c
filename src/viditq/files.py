"""Writing files so that nothing half-written is ever seen under its final name.

A file is written beside its place and renamed; a directory is built beside its place and renamed
when the block ends well. Both names are on one file system, so the rename is atomic: after a kill
or a full disk the old content, or nothing, is there. A directory that holds something is replaced
only when the caller allows it *and* it is an earlier output of the same kind, told by a file that
such outputs have (``marker``); a folder of somebody's photographs is never deleted.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from viditq.errors import InputError

__all__ = ["atomic_directory", "check_replaceable", "replace_directory", "write_atomic"]


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8) to ``path``, whole or not at all; returns the path.

    The parent directory is made when it is missing. Raises OSError as the system gives it.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_replaceable(path: str | Path, *, marker: str, overwrite: bool = False) -> None:
    """Raise InputError unless ``path`` is free, empty, or an output that may be replaced.

    Args:
        path: The directory that is going to be written.
        marker: A file, relative to ``path``, that every output of this kind has.
        overwrite: Whether an earlier output of the same kind may be replaced.

    Call it before work that takes minutes, so that a mistake costs none.
    """
    path = Path(path).resolve()
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; --out needs a directory that is new or empty.")
    if not any(path.iterdir()):
        return
    if not (path / marker).exists():
        raise InputError(
            f"{path} holds other files; name a directory that is new or empty "
            "(an earlier output of this command could be replaced with --overwrite)."
        )
    if not overwrite:
        raise InputError(
            f"{path} holds an earlier output; replace it with --overwrite or name a new directory."
        )


def replace_directory(finished: str | Path, path: str | Path) -> None:
    """Rename directory ``finished`` to ``path``; what was at ``path`` goes away afterwards."""
    finished, path = Path(finished), Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _beside(path, "old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(finished, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_directory(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty directory beside ``path`` that becomes ``path`` when the block ends well.

    Arguments and errors are those of :func:`check_replaceable`. When the block raises, also on
    Ctrl-C, the temporary directory is removed and ``path`` is as it was.
    """
    path = Path(path).resolve()
    check_replaceable(path, marker=marker, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    partial.mkdir()
    try:
        yield partial
        replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{what}")
