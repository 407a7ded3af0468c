"""Prompt files: UTF-8, one prompt a line; blank lines and lines beginning with # are skipped."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from viditq.errors import InputError

__all__ = ["hash_prompts", "read_prompts"]


def read_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a file, in order, without surrounding white space.

    Raises InputError naming the file when it is missing, not UTF-8 text, or holds no prompt.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {path} is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(
            f"The prompt file {path} has no prompts; write one a line (lines with # are comments)."
        )
    return prompts


def hash_prompts(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts in their order, as 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
