"""What turns a published network into a pipeline directory: its other parts, and how it is written.

A part comes from wherever its own ``from_pretrained`` finds it: a directory, or a repository on the
hub, that is the part itself or a pipeline that has it. The directory appears whole or not at all.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import viditq
from viditq.errors import InputError
from viditq.files import atomic_directory, check_replaceable, write_atomic

__all__ = ["check_out", "image_autoencoder", "match", "part_of", "write_pipeline"]

MARKER = "converted.json"
"""What only a converted pipeline has."""

MAX_SHARD_SIZE = "5GB"


def part_of(source: str | Path, folder: str, load: Callable[..., Any]) -> Any:
    """What ``load`` finds at ``source`` itself or in its ``folder``."""
    own, nested = {}, {"subfolder": folder}
    if Path(source).is_dir():
        places = [nested if (Path(source) / folder).is_dir() else own]
    elif str(source).count("/") == 1 and not str(source).startswith((".", "/")):
        places = [own, nested]
    else:
        raise InputError(
            f"There is no directory {source}; the {folder} is given as one, or as a hub id like "
            f"owner/name."
        )
    reasons = []
    for place in places:
        try:
            return load(source, **place)
        except Exception as error:
            reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
    raise InputError(f"No {folder} can be loaded from {source} ({reasons[0]}).")


def image_autoencoder(source: str | Path) -> Any:
    """The ``AutoencoderKL`` of ``source``."""
    from diffusers import AutoencoderKL

    return part_of(source, "vae", AutoencoderKL.from_pretrained)


def match(checkpoint: Path, what: str, wanted: int, source: str | Path, found: int) -> None:
    """Two parts fit: ``checkpoint`` has as many of ``what`` as ``source``."""
    if wanted != found:
        raise InputError(f"{checkpoint} has {wanted} {what}, {source} has {found}; give another.")


def check_out(out: Path, overwrite: bool) -> None:
    """``out`` is new or empty, or an earlier output that may be replaced."""
    check_replaceable(out, marker=MARKER, overwrite=overwrite)


def write_pipeline(pipe: Any, checkpoint: Path, out: Path, overwrite: bool) -> None:
    """``pipe``, made of ``checkpoint``, as a directory in diffusers layout."""
    with atomic_directory(out, marker=MARKER, overwrite=overwrite) as part:
        pipe.save_pretrained(part, max_shard_size=MAX_SHARD_SIZE)
        told = {"checkpoint": checkpoint.name, "viditq": viditq.__version__}
        write_atomic(part / MARKER, json.dumps(told, indent=1) + "\n")
