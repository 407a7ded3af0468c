"""Calibration statistics of every layer input, as a directory of safetensors.

Layers that read the same tensor share one entry. ``stats.json`` says which file holds which input;
tensors are read when asked for, so that the statistics of a large model never sit in memory at
once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from viditq.errors import CalibrationError

__all__ = ["CalibrationStats", "LayerStats"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerStats:
    """What calibration saw at one layer input.

    Attributes:
        step_amax: (T, K) fp32, largest magnitude of each channel at each recorded step.
        mean: (K,) fp32, mean over all tokens.
        second_moment: (K, K) fp32, mean of ``xᵀx`` over all tokens.
        rows: (R, K) fp32, tokens sampled evenly over steps and branches.
        row_steps: (R,) int64, the step of each sampled token.
        count: (1,) int64, number of tokens seen.
    """

    step_amax: Tensor
    mean: Tensor
    second_moment: Tensor
    rows: Tensor
    row_steps: Tensor
    count: Tensor

    @property
    def amax(self) -> Tensor:
        """() fp32: the largest magnitude of all."""
        return self.step_amax.max()

    def to(self, device: torch.device | str) -> "LayerStats":
        return LayerStats(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class CalibrationStats(Mapping[str, LayerStats]):
    """Statistics by layer name, read from ``folder`` on access."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / "stats.json"
        try:
            data = json.loads(index.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CalibrationError(f"{index} cannot be read as statistics ({error}).") from None
        if data.get("schema_version") != SCHEMA_VERSION:
            raise CalibrationError(
                f"{index} has schema version {data.get('schema_version')}, this viditq reads "
                f"{SCHEMA_VERSION}; calibrate again."
            )
        self.steps: list[int] = data["steps"]
        self._files: dict[str, str] = data["layers"]

    def __getitem__(self, name: str) -> LayerStats:
        file = self.folder / self._files[name]
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{file} cannot be read as statistics ({error}).") from None
        return LayerStats(**tensors)

    def __iter__(self):
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @staticmethod
    def write_layer(folder: Path, file: str, stats: LayerStats) -> None:
        """Write one entry; it appears whole or not at all."""
        part = folder / f"{file}.part"
        save_file({f.name: getattr(stats, f.name).contiguous() for f in fields(stats)}, part)
        part.replace(folder / file)

    @staticmethod
    def write_index(folder: Path, steps: list[int], layers: Mapping[str, str]) -> None:
        """Write ``stats.json``: the directory is complete from now on."""
        data = {"schema_version": SCHEMA_VERSION, "steps": steps, "layers": dict(layers)}
        part = folder / "stats.json.part"
        part.write_text(json.dumps(data, indent=1), "utf-8")
        part.replace(folder / "stats.json")
