"""Calibration statistics of every layer, as directories of safetensors.

Layers that read the same tensor share one entry about their input. An index says what was observed
and which file holds which layer; it is written first, so that an interrupted observation goes on
with the files that are missing, and only for the same model and inputs. Tensors are read when asked
for: the statistics of a large model never sit in memory at once.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from viditq.errors import CalibrationError
from viditq.files import write_atomic

__all__ = ["CalibrationStats", "GradientStats", "LayerStats", "stats_of"]

SCHEMA_VERSION = 1
Entry = TypeVar("Entry")


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


class _Folder(Mapping[str, Entry]):
    """Entries by layer name, in files that several layers may share; read on access.

    Attributes:
        observed: hash of the calibration set and the settings, as :meth:`create` was given it.
        steps: the recorded denoising steps.
    """

    INDEX: ClassVar[str]

    _held: dict[str, Mapping[str, Tensor]] | None = None
    """Entries by file, if they are held in memory."""

    def __init__(self, folder: str | Path) -> None:
        """Open an existing directory; :class:`CalibrationError` if it is none or damaged."""
        self.folder = Path(folder)
        index = self.folder / self.INDEX
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
        cls,
        folder: str | Path,
        *,
        observed: str,
        steps: Sequence[int],
        layers: Mapping[str, str],
        in_memory: bool = False,
    ) -> Self:
        """Open ``folder`` to write into; statistics begun for the same ``observed`` go on.

        Args:
            observed: hash of the calibration set and of the settings.
            steps: the recorded denoising steps.
            layers: the file of each layer.
            in_memory: hold entries instead of writing them; those on disk are not seen.
        """
        folder = Path(folder)
        if (folder / cls.INDEX).exists():
            existing = cls(folder)
            if existing.observed != observed:
                raise CalibrationError(
                    f"{folder} holds statistics of another model or calibration set; remove it or "
                    f"name another folder."
                )
            existing._held = {} if in_memory else None
            return existing
        data = {
            "schema_version": SCHEMA_VERSION,
            "observed": observed,
            "steps": list(steps),
            "layers": dict(layers),
        }
        write_atomic(folder / cls.INDEX, json.dumps(data, indent=1))
        made = cls(folder)
        made._held = {} if in_memory else None
        return made

    @property
    def missing(self) -> set[str]:
        """Files that are not yet written."""
        files = set(self._files.values())
        if self._held is not None:
            return files - self._held.keys()
        return {file for file in files if not (self.folder / file).exists()}

    def _write(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one entry; it appears whole or not at all."""
        if self._held is not None:
            self._held[file] = tensors
            return
        self._save(file, tensors)

    def _save(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        part = self.folder / f"{file}.part"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(self.folder / file)

    def discard(self, names: Iterable[str]) -> None:
        """Remove the entries of these layers."""
        for name in names:
            if self._held is not None:
                self._held.pop(self._files[name], None)
            (self.folder / self._files[name]).unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Tensor]:
        file = self.folder / self._files[name]
        if self._held is not None and self._files[name] in self._held:
            return dict(self._held[self._files[name]])
        try:
            return load_file(file)
        except FileNotFoundError:
            raise CalibrationError(
                f"{file} is missing: {len(self.missing)} entries are not yet observed; "
                f"observe again to go on."
            ) from None
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{file} cannot be read as statistics ({error}).") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class CalibrationStats(_Folder[LayerStats]):
    """The statistics of every layer's input."""

    INDEX = "stats.json"

    def write(self, file: str, stats: LayerStats) -> None:
        """Write one entry; it appears whole or not at all."""
        self._write(file, {f.name: getattr(stats, f.name) for f in fields(stats)})

    def __getitem__(self, name: str) -> LayerStats:
        try:
            return LayerStats(**self._read(name))
        except TypeError as error:
            file = self.folder / self._files[name]
            raise CalibrationError(f"{file} cannot be read as statistics ({error}).") from None


class GradientStats(_Folder[Tensor]):
    """(N, N) fp32 for every layer: the second moment of the gradient at its output.

    The gradient is that of the model's output along random directions, so that an error ``δ`` (N,)
    of the layer's output costs ``δᵀ G δ`` in squared error of the model's, on average.
    """

    INDEX = "gradients.json"

    LEVELS: ClassVar[str] = "levels.safetensors"

    def write(self, file: str, moment: Tensor) -> None:
        """Write one entry; it appears whole or not at all."""
        self._write(file, {"second_moment": moment})

    @property
    def levels(self) -> Tensor | None:
        """(calls,) fp32, what the moments of each call were divided by; None before the first."""
        file = self.folder / self.LEVELS
        return load_file(file)["levels"] if file.exists() else None

    def write_levels(self, levels: Tensor) -> None:
        """Keep the levels for layers that are observed later."""
        self._save(self.LEVELS, {"levels": levels})

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._read(name)["second_moment"]
        except KeyError:
            file = self.folder / self._files[name]
            raise CalibrationError(f"{file} holds no moment of gradients.") from None


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
