"""The ``quantization_config`` of a checkpoint: plan and provenance, in the model's ``config.json``.

What is read is validated, and refused in one sentence that names the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from viditq.errors import CheckpointError
from viditq.plan import Value, validation_sentence

__all__ = [
    "CONFIG",
    "QUANT_METHOD",
    "SCHEMA_VERSION",
    "Provenance",
    "QuantizationConfig",
    "check_version",
    "is_quantized",
    "parse_config",
    "read_config",
    "read_object",
    "set_config",
]

SCHEMA_VERSION = 1
QUANT_METHOD = "viditq"
CONFIG = "config.json"


class Provenance(Value):
    """Where a checkpoint comes from.

    Attributes:
        base_model: the float pipeline, as it was named.
        base_fingerprint: hash of its transformer's weights.
        prompts_sha256, num_prompts, num_steps, steps, guidance, seed: the calibration set.
        versions: of viditq, torch and diffusers.
        measured: quality at conversion: ``denoiser_sqnr_db`` is the signal to quantization noise of
            the transformer's output on recorded calls, ``layer_sqnr_db`` the mean over its layers.
    """

    base_model: str
    base_fingerprint: str
    prompts_sha256: str
    num_prompts: int
    num_steps: int
    steps: tuple[int, ...]
    guidance: float
    seed: int
    versions: dict[str, str]
    measured: dict[str, float]


class QuantizationConfig(Value):
    """The ``quantization_config`` entry of ``config.json``."""

    quant_method: Literal["viditq"] = QUANT_METHOD
    schema_version: Literal[1] = SCHEMA_VERSION
    plan: dict[str, Any]
    provenance: Provenance | None = None


def is_quantized(folder: str | Path) -> bool:
    """Whether ``folder`` (of a transformer) holds a checkpoint of viditq."""
    try:
        config = read_object(Path(folder) / CONFIG, "a model's configuration")
    except CheckpointError:
        return False
    return _entry(config).get("quant_method") == QUANT_METHOD


def read_config(folder: str | Path) -> tuple[dict[str, Any], QuantizationConfig]:
    """``config.json`` as it is, and its validated ``quantization_config``."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no quantized pipeline (there is no {path}); name a directory that "
            f"`viditq quantize` wrote."
        )
    raw = read_object(path, "a model's configuration")
    entry = _entry(raw)
    if entry.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"{path} is no viditq checkpoint (quant_method is {entry.get('quant_method')!r}); "
            f"make one with `viditq quantize`."
        )
    return raw, parse_config(entry, str(path))


def _entry(config: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = config.get("quantization_config")
    return entry if isinstance(entry, Mapping) else {}


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in ``path``."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as {what} ({error}).") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} cannot be read as {what} (it is no JSON object).")
    return data


def parse_config(entry: Mapping[str, Any], where: str) -> QuantizationConfig:
    """Validate a ``quantization_config``; errors name ``where``."""
    check_version(entry, where)
    try:
        return QuantizationConfig(**entry)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {validation_sentence(error)}") from None


def check_version(data: Mapping[str, Any], where: str) -> None:
    version = data.get("schema_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{where} has no valid schema_version ({version!r}).")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{where} has schema version {version}, this viditq reads up to {SCHEMA_VERSION}; "
            f"upgrade viditq."
        )


def set_config(model: nn.Module, config: QuantizationConfig) -> None:
    """Make ``config`` part of the model's configuration, as ``save_pretrained`` writes it."""
    entry = config.model_dump(mode="json", exclude_none=True)
    model.register_to_config(quantization_config=entry)  # pyright: ignore[reportCallIssue]
