"""Samples on disk: one pair of files per sample, so that a stopped comparison goes on.

``NNNN.safetensors`` holds the sample in 65,536 levels (the noise floor is 107 dB, far below any
difference that matters) and ``NNNN.png`` is the same to look at, a video as a strip of its frames.
Each tensor file carries a *fingerprint* of all that made it; a sample with another fingerprint is
not there. Every file appears whole or not at all. Nothing is compressed with loss.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from viditq.errors import InputError, PipelineError
from viditq.evaluation.media import png
from viditq.files import write_atomic

__all__ = [
    "SampleStore",
    "fingerprint",
    "fingerprint_directory",
    "fingerprint_package",
    "read_sample",
]

_LEVELS = 65535


@dataclass(frozen=True)
class SampleStore:
    """The samples of one pipeline in one folder, numbered from 0.

    Attributes:
        folder: Where the files lie; made at the first ``write``.
        fingerprints: What makes each sample, see :func:`fingerprint`.
    """

    folder: Path
    fingerprints: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.fingerprints)

    def has(self, index: int) -> bool:
        """Whether sample ``index`` is there, whole, and made in the same way."""
        try:
            with safe_open(self._tensor_file(index), "numpy") as file:
                return (file.metadata() or {}).get("fingerprint") == self.fingerprints[index]
        except (OSError, SafetensorError):
            return False

    def write(self, index: int, sample: Tensor) -> None:
        """Store ``sample``: (H, W, 3) or (T, H, W, 3), float in 0..1.

        Raises PipelineError when a value is not finite.
        """
        if not torch.isfinite(sample).all():
            raise PipelineError(
                f"The pipeline of {self.folder.name} made a sample with NaN or infinite values "
                f"(sample {index})."
            )
        levels = (sample.double().clamp(0, 1) * _LEVELS).round().numpy()
        levels = np.ascontiguousarray(levels, np.uint16)  # safetensors writes memory as it lies
        write_atomic(self.picture_file(index), png(sample))
        metadata = {"fingerprint": self.fingerprints[index]}
        write_atomic(self._tensor_file(index), save({"sample": levels}, metadata))

    def read(self, index: int) -> Tensor:
        """Sample ``index`` as stored: float32 in 0..1, (H, W, 3) or (T, H, W, 3)."""
        return read_sample(self.folder, index)

    def picture_file(self, index: int) -> Path:
        """The PNG of sample ``index``."""
        return self.folder / f"{index:04d}.png"

    def adopt(self, earlier: Path) -> None:
        """Link the samples of an earlier folder that were made in the same way."""
        other = SampleStore(earlier, self.fingerprints)
        for index in range(len(self)):
            if other.has(index) and not self.has(index):
                self.folder.mkdir(parents=True, exist_ok=True)
                _link(other.picture_file(index), self.picture_file(index))
                _link(other._tensor_file(index), self._tensor_file(index))

    def _tensor_file(self, index: int) -> Path:
        return self.folder / f"{index:04d}.safetensors"


def read_sample(folder: Path, index: int) -> Tensor:
    """Sample ``index`` of a store's folder: float32 in 0..1, (H, W, 3) or (T, H, W, 3).

    Raises InputError when it is not there or damaged.
    """
    path = folder / f"{index:04d}.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            levels = file.get_tensor("sample")
    except (OSError, SafetensorError) as error:
        raise InputError(f"The sample {path} is missing or damaged.") from error
    return torch.from_numpy(levels.astype(np.float32) / _LEVELS)


def fingerprint(**facts: Any) -> str:
    """SHA-256 over named facts that JSON can carry."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint_directory(folder: Path) -> str:
    """SHA-256 over the names, sizes and times of the files below ``folder``.

    The times stand for the content: reading the tens of GB of a large pipeline would take longer
    than loading it. A copied pipeline therefore counts as another one, which only costs time.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint(
        files=[
            (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
        ]
    )


def fingerprint_package() -> str:
    """SHA-256 over the source of this package, apart from the layers that only measure and show."""
    import viditq

    root = Path(viditq.__file__).parent
    above = {"evaluation", "report", "cli", "bench"}
    files = sorted(
        path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in above
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
