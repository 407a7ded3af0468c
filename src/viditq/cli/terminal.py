"""Between a command and the person at the terminal: progress, results, and errors in one sentence.

Each command runs inside ``with session() as track``. What a user can cause ends there with one
sentence on standard error and exit code 2 (130 after Ctrl-C); a defect of viditq itself keeps its
traceback, because that is what a report of it needs. Progress goes to standard error as well.
"""

import errno
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from viditq.errors import ViditqError
from viditq.files import write_atomic
from viditq.progress import Track

__all__ = ["command_line", "note", "say", "session", "write_json"]

T = TypeVar("T")
_INTERRUPTED = 130  # what shells give for Ctrl-C


@contextmanager
def session(on_interrupt: str = "") -> Iterator[Track]:
    """Give a ``Track`` that draws bars; turn errors into one sentence and an exit code.

    Args:
        on_interrupt: What to know after Ctrl-C or a full disk, such as where the work is kept.
    """
    _quieten_libraries()
    try:
        with _bars() as track:
            yield track
    except KeyboardInterrupt:
        _stop(f"Interrupted. {on_interrupt}".rstrip(), _INTERRUPTED)
    except ViditqError as error:
        _stop(str(error))
    except Exception as error:
        sentence = _sentence(error, on_interrupt)
        if sentence is None:
            raise
        _stop(sentence)


def say(*objects: Any) -> None:
    """Print text or rich's renderables to standard output."""
    from rich.console import Console

    Console(highlight=False).print(*objects, soft_wrap=all(isinstance(o, str) for o in objects))


def note(line: str) -> None:
    """Print a line about the work that goes on to standard error, above the bars."""
    typer.echo(line, err=True)


def write_json(file: Path | None, value: Any) -> None:
    """Write ``value`` to ``file``, whole or not at all; nothing when ``file`` is None."""
    if file is not None:
        write_atomic(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def command_line() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["viditq", *sys.argv[1:]])


def _stop(sentence: str, code: int = 2) -> None:
    typer.echo(f"viditq: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(code) from None


def _sentence(error: Exception, on_interrupt: str) -> str | None:
    """What to say about an error that is not viditq's own; None when it is a defect."""
    full = getattr(error, "errno", None) == errno.ENOSPC
    # safetensors wraps the system's error in one of its own
    if full or "No space left on device" in str(error):
        return f"The disk is full; free some space and run again. {on_interrupt}".rstrip()
    if type(error).__name__ == "OutOfMemoryError":
        return "The accelerator has not enough memory; try a smaller --batch-size or --device cpu."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}."
    return None


def _quieten_libraries() -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def _bars() -> Iterator[Track]:
    """Bars on a terminal; elsewhere, as in a log, one line for each piece of work that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        start = time.monotonic()
        task = progress.add_task(description, total=total)
        done = 0
        try:
            for item in items:
                yield item
                done += 1
                progress.advance(task)
        finally:
            progress.remove_task(task)
            if not console.is_terminal:
                console.print(f"{description}: {done} in {time.monotonic() - start:.1f} s")

    with progress:
        yield track
