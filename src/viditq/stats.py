"""Calibration statistics of every layer input, as a directory of safetensors.

Layers that read the same tensor share one entry. ``stats.json`` says what was observed and which
file holds which input; it is written first, so that an interrupted observation goes on with the
files that are missing, and only for the same model and inputs. Tensors are read when asked for: the
statistics of a large model never sit in memory at once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from viditq.errors import CalibrationError
from viditq.files import write_atomic

__all__ = ["CalibrationStats", "LayerStats", "stats_of"]

SCHEMA_VERSION = 1
INDEX = "stats.json"


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

    def to(self, device: torch.device | str) -> "LayerStats":
        return LayerStats(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class CalibrationStats(Mapping[str, LayerStats]):
    """Statistics by layer name, read from ``folder`` on access.

    Attributes:
        observed: hash of the calibration set and the settings, as :meth:`create` was given it.
        steps: the recorded denoising steps.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open an existing directory; :class:`CalibrationError` if it is none or damaged."""
        self.folder = Path(folder)
        index = self.folder / INDEX
        try:
            data = json.loads(index.read_text("utf-8"))
            version = data["schema_version"]
            self.observed: str = data["observed"]
            self.steps: list[int] = list(data["steps"])
            self._files: dict[str, str] = dict(data["layers"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{index} cannot be read as statistics ({error}).") from None
        if version != SCHEMA_VERSION:
            raise CalibrationError(
                f"{index} has schema version {version}, this viditq reads {SCHEMA_VERSION}; "
                f"calibrate again."
            )

    @classmethod
    def create(
        cls, folder: str | Path, *, observed: str, steps: Sequence[int], layers: Mapping[str, str]
    ) -> "CalibrationStats":
        """Open ``folder`` to write into; statistics begun for the same ``observed`` go on.

        Args:
            observed: hash of the calibration set and of the settings.
            steps: the recorded denoising steps.
            layers: the file of each layer.
        """
        folder = Path(folder)
        if (folder / INDEX).exists():
            existing = cls(folder)
            if existing.observed != observed:
                raise CalibrationError(
                    f"{folder} holds statistics of another model or calibration set; remove it or "
                    f"name another folder."
                )
            return existing
        data = {
            "schema_version": SCHEMA_VERSION,
            "observed": observed,
            "steps": list(steps),
            "layers": dict(layers),
        }
        write_atomic(folder / INDEX, json.dumps(data, indent=1))
        return cls(folder)

    @property
    def missing(self) -> set[str]:
        """Files that are not yet written."""
        return {file for file in self._files.values() if not (self.folder / file).exists()}

    def write(self, file: str, stats: LayerStats) -> None:
        """Write one entry; it appears whole or not at all."""
        part = self.folder / f"{file}.part"
        save_file({f.name: getattr(stats, f.name).contiguous() for f in fields(stats)}, part)
        part.replace(self.folder / file)

    def __getitem__(self, name: str) -> LayerStats:
        file = self.folder / self._files[name]
        try:
            return LayerStats(**load_file(file))
        except FileNotFoundError:
            raise CalibrationError(
                f"{file} is missing: {len(self.missing)} layer inputs are not yet observed; "
                f"observe again to go on."
            ) from None
        except (OSError, SafetensorError, TypeError) as error:
            raise CalibrationError(f"{file} cannot be read as statistics ({error}).") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def stats_of(stats: Mapping[str, LayerStats], name: str, features: int) -> LayerStats:
    """The statistics of the layer ``name``, which reads ``features`` channels.

    Raises:
        CalibrationError: there are none, or they are of a layer of another width.
    """
    if name not in stats:
        raise CalibrationError(f"There are no statistics of {name}; calibrate this model.")
    found = stats[name]
    if found.mean.shape != (features,):
        raise CalibrationError(
            f"The statistics of {name} have {found.mean.numel()} channels, the layer reads "
            f"{features}; calibrate this model."
        )
    return found
