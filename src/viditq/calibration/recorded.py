"""``CalibrationSet``: transformer inputs recorded along sampling trajectories, on disk.

One folder per prompt, one safetensors file per call at a kept denoising step, holding every tensor
that the pipeline passed to the transformer and the other arguments as JSON. A step is one call if
the pipeline batches the branches of classifier-free guidance, and several if it makes them one
after the other. From here on nothing needs a text encoder, a VAE or a scheduler. A prompt's folder
appears when it is complete, so an interrupted recording goes on where it stopped.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from viditq.errors import CalibrationError
from viditq.files import write_atomic
from viditq.plan import validation_sentence
from viditq.prompts import hash_prompts

__all__ = ["CalibrationInfo", "CalibrationSet", "RecordedCall"]

SCHEMA_VERSION = 1
INDEX = "calibration.json"


class CalibrationInfo(BaseModel):
    """How a calibration set was recorded.

    Attributes:
        source: pipeline the inputs come from.
        model: fingerprint of its transformer.
        prompts: one trajectory each, or ``batch_size`` together.
        num_steps: denoising steps of a trajectory.
        steps: indices of the steps that are kept, ascending.
        guidance: classifier-free guidance scale.
        seed: prompt ``i`` starts from the noise of seed ``seed + i``.
        calls_per_step: how often a step calls the transformer.
        batch_size: prompts that are sampled together; each such group is one trajectory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    source: str
    model: str
    prompts: tuple[str, ...]
    num_steps: int
    steps: tuple[int, ...]
    guidance: float
    seed: int
    calls_per_step: int = 1
    batch_size: int = 1

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The prompts of each trajectory."""
        starts = range(0, len(self.prompts), self.batch_size)
        return tuple(self.prompts[start : start + self.batch_size] for start in starts)

    @property
    def prompts_sha256(self) -> str:
        """Hash of the prompts, for provenance."""
        return hash_prompts(self.prompts)


@dataclass(frozen=True)
class RecordedCall:
    """One call of the transformer: its step index and its keyword arguments."""

    prompt: int
    step: int
    arguments: Mapping[str, Any]


class CalibrationSet:
    """A folder of recorded calls; see the module's description."""

    def __init__(self, folder: str | Path) -> None:
        """Open an existing set; :class:`CalibrationError` if there is none or it is damaged."""
        self.folder = Path(folder)
        index = self.folder / INDEX
        try:
            self.info = CalibrationInfo.model_validate_json(index.read_text("utf-8"))
        except OSError as error:
            raise CalibrationError(f"{index} cannot be read ({error.strerror}).") from None
        except ValidationError as error:
            raise CalibrationError(f"{index}: {validation_sentence(error)}") from None
        if self.info.schema_version != SCHEMA_VERSION:
            raise CalibrationError(
                f"{index} has schema version {self.info.schema_version}, this viditq reads "
                f"{SCHEMA_VERSION}; record again."
            )

    @classmethod
    def create(cls, folder: str | Path, info: CalibrationInfo) -> "CalibrationSet":
        """Open ``folder`` to record into; a set begun with the same settings goes on."""
        folder = Path(folder)
        if (folder / INDEX).exists():
            existing = cls(folder)
            if existing.info != info:
                raise CalibrationError(
                    f"{folder} holds a calibration set with other settings (prompts, steps, seed "
                    f"or model); remove it or name another folder."
                )
            return existing
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / INDEX, info.model_dump_json(indent=1))
        return cls(folder)

    @property
    def missing(self) -> list[int]:
        """Indices of the prompts, or groups of them, that are not yet recorded."""
        return [i for i in range(len(self.info.groups)) if not self._prompt_folder(i).is_dir()]

    def __len__(self) -> int:
        """Number of calls when complete."""
        return self.count()

    def __iter__(self) -> Iterator[RecordedCall]:
        """Every call, prompt by prompt; one is in memory at a time."""
        return self.calls()

    def calls(self, every: int = 1) -> Iterator[RecordedCall]:
        """One call in ``every``; each prompt, each step and each of its calls has a share."""
        self.check_complete()
        for place in self._chosen(every):
            yield self._call(*place)

    def call(self, number: int) -> RecordedCall:
        """The call with this number, 0 … :meth:`count` - 1."""
        return self._call(*self._chosen(1)[number])

    def check_complete(self) -> None:
        """:class:`CalibrationError` if prompts are missing."""
        if self.missing:
            raise CalibrationError(
                f"{self.folder} is incomplete: {len(self.missing)} of {len(self.info.groups)} "
                f"prompts are not recorded; record again to go on."
            )

    def _call(self, prompt: int, step: int, number: int) -> RecordedCall:
        path = self._prompt_folder(prompt) / _file_name(step, number)
        return RecordedCall(prompt, step, _read_call(path))

    def count(self, every: int = 1) -> int:
        """How many :meth:`calls` there are."""
        return len(self._chosen(every))

    def _chosen(self, every: int) -> list[tuple[int, int, int]]:
        """(prompt, step, number within the step) of one call in ``every``."""
        return [
            (prompt, step, number)
            for prompt in range(len(self.info.groups))
            for position, step in enumerate(self.info.steps)
            for number in range(self.info.calls_per_step)
            if (prompt + position + number) % every == 0
        ]

    def write_prompt(self, prompt: int, calls: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Store the kept calls of one trajectory; they appear together.

        Args:
            prompt: index of the prompt.
            calls: (step, keyword arguments) of the calls at kept steps, in their order; of each
                step the first ``calls_per_step`` are stored.

        Raises:
            CalibrationError: a kept step has fewer; nothing is written.
        """
        found, wanted = Counter(step for step, _ in calls), self.info.calls_per_step
        if short := [step for step in self.info.steps if found[step] < wanted]:
            raise CalibrationError(
                f"Step {short[0]} called the transformer {found[short[0]]} times, expected "
                f"{wanted}."
            )
        target = self._prompt_folder(prompt)
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        written: Counter[int] = Counter()
        for step, arguments in calls:
            if written[step] < wanted:
                _write_call(part / _file_name(step, written[step]), arguments)
                written[step] += 1
        part.rename(target)

    def _prompt_folder(self, prompt: int) -> Path:
        return self.folder / f"prompt-{prompt:05d}"


def _file_name(step: int, number: int) -> str:
    suffix = f"-{number}" if number else ""
    return f"step-{step:04d}{suffix}.safetensors"


def _write_call(path: Path, arguments: Mapping[str, Any]) -> None:
    """Tensors go into the body of the file, nested ones under dotted names, the rest on top."""
    tensors: dict[str, Tensor] = {}

    def strip(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"mapping": {k: strip(f"{name}.{k}", v) for k, v in value.items()}}
        if isinstance(value, tuple):
            return {"tuple": [strip(f"{name}.{i}", v) for i, v in enumerate(value)]}
        return {"value": value}

    header = json.dumps({k: strip(k, v) for k, v in arguments.items()})
    save_file(tensors, path, metadata={"arguments": header})


def _read_call(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["arguments"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read as a recorded call ({error}).") from None

    def fill(entry: dict[str, Any]) -> Any:
        if "tensor" in entry:
            return tensors[entry["tensor"]]
        if "mapping" in entry:
            return {k: fill(v) for k, v in entry["mapping"].items()}
        if "tuple" in entry:
            return tuple(fill(v) for v in entry["tuple"])
        return entry["value"]

    return {k: fill(v) for k, v in header.items()}


def move(value: Any, device: torch.device | str) -> Any:
    """Recorded arguments on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(move(v, device) for v in value)
    return value
