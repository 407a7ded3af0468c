"""Quantized transformers on disk, in the layout of diffusers' ``save_pretrained``.

``config.json`` is the float model's, with a ``quantization_config`` that holds the compact plan and
the provenance; the safetensors hold codes, scales and whatever stayed float; ``viditq_layers.json``
holds the diagnostics of each layer, for reports. Loading is strict: every tensor must be there,
with the shape and the kind of number that the plan asks for, or nothing is loaded. Nothing is
pickled.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from viditq.diagnostics import LayerDiagnostics
from viditq.errors import CheckpointError
from viditq.files import write_atomic
from viditq.nn import FP32_TENSORS, planned_layers, replace_
from viditq.plan import Plan, validation_sentence

__all__ = [
    "CheckpointSummary",
    "Provenance",
    "QuantizationConfig",
    "inspect",
    "is_quantized",
    "load",
    "read_config",
    "save",
]

SCHEMA_VERSION = 1
QUANT_METHOD = "viditq"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
LAYERS = "viditq_layers.json"
MAX_SHARD_SIZE = "5GB"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(_Value):
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


class QuantizationConfig(_Value):
    """The ``quantization_config`` entry of ``config.json``."""

    quant_method: Literal["viditq"] = QUANT_METHOD
    schema_version: int = SCHEMA_VERSION
    plan: dict[str, Any]
    provenance: Provenance | None = None


class CheckpointSummary(_Value):
    """What is in a checkpoint.

    Attributes:
        name: of the pipeline's directory.
        transformer: class of the model.
        recipe: the recipe the plan was made from.
        weight_bits: true average over the quantized layers, scales and smoothing included.
        size_bytes, float_size_bytes: of the quantized layers' weights, as stored and in bf16.
        num_layers, num_weights: quantized layers and the weights in them.
        layers: diagnostics by layer name; empty where another program saved the checkpoint.
        plan: what was done to each layer.
    """

    name: str
    transformer: str
    recipe: str
    weight_bits: float
    size_bytes: int
    float_size_bytes: int
    num_layers: int
    num_weights: int
    provenance: Provenance | None
    layers: dict[str, LayerDiagnostics]
    plan: Plan


def save(
    model: nn.Module,
    folder: str | Path,
    plan: Plan,
    *,
    diagnostics: Mapping[str, LayerDiagnostics],
    provenance: Provenance | None = None,
) -> Path:
    """Write a quantized transformer.

    Args:
        model: a diffusers model whose planned layers are quantized.
        folder: the ``transformer`` folder of a pipeline; it should not exist or be empty, since
            files are written one after the other.
        plan: what :func:`viditq.convert.quantize_` was given.
        diagnostics: what it returned.
        provenance: where the checkpoint comes from.
    """
    folder = Path(folder)
    config = QuantizationConfig(plan=plan.to_json(), provenance=provenance)
    set_config(model, config)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)  # pyright: ignore
    layers = {name: layer.model_dump() for name, layer in diagnostics.items()}
    sidecar = {"schema_version": SCHEMA_VERSION, "layers": layers}
    write_atomic(folder / LAYERS, json.dumps(sidecar, indent=1))
    return folder


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Any:
    """Read a quantized transformer.

    Args:
        folder: the ``transformer`` folder of a quantized pipeline.
        device: where the tensors go.
        dtype: of what stayed float, scales and smoothing excepted; ``None`` leaves it as stored.

    Returns:
        The diffusers model, in evaluation mode.

    Raises:
        CheckpointError: naming the file, the tensor, what was expected and what was found.
    """
    folder = Path(folder)
    raw, config = read_config(folder)
    plan = Plan.from_json(config.plan, where=str(folder / CONFIG))
    model = replace_(_empty_model(raw), plan)
    model.load_state_dict(_read_tensors(folder, model.state_dict(), device, dtype), assign=True)
    set_config(model, config)
    # What is not stored (position tables and the like) was made on the CPU.
    return model.to(device).eval()


def _empty_model(raw: Mapping[str, Any]) -> Any:
    """The float model of a configuration, its parameters without storage."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights():
        return getattr(diffusers, raw["_class_name"]).from_config(raw)


def is_quantized(folder: str | Path) -> bool:
    """Whether ``folder`` (of a transformer) holds a checkpoint of viditq."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (config.get("quantization_config") or {}).get("quant_method") == QUANT_METHOD


def read_config(folder: str | Path) -> tuple[dict[str, Any], QuantizationConfig]:
    """``config.json`` as it is, and its validated ``quantization_config``."""
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a model's configuration ({error})."
        ) from None
    entry = raw.get("quantization_config") or {}
    if entry.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"{path} is no viditq checkpoint (quant_method is {entry.get('quant_method')!r}); "
            f"make one with `viditq quantize`."
        )
    return raw, parse_config(entry, str(path))


def parse_config(entry: Mapping[str, Any], where: str) -> QuantizationConfig:
    """Validate a ``quantization_config``; errors name ``where``."""
    version = entry.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{where} has schema version {version}, this viditq reads up to {SCHEMA_VERSION}; "
            f"upgrade viditq."
        )
    try:
        return QuantizationConfig(**entry)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {validation_sentence(error)}") from None


def set_config(model: nn.Module, config: QuantizationConfig) -> None:
    """Make ``config`` part of the model's configuration, as ``save_pretrained`` writes it."""
    entry = config.model_dump(mode="json", exclude_none=True)
    model.register_to_config(quantization_config=entry)  # pyright: ignore[reportCallIssue]


def inspect(folder: str | Path) -> CheckpointSummary:
    """Summarize a quantized pipeline or transformer without loading it; sizes are those on disk."""
    folder = Path(folder)
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    raw, config = read_config(transformer)
    plan = Plan.from_json(config.plan, where=str(transformer / CONFIG))
    infos = planned_layers(_empty_model(raw), plan)
    num_weights = sum(info.in_features * info.out_features for info in infos.values())
    stored = dict.fromkeys(infos, 0)
    for _, file, name in _stored_tensors(transformer):
        layer, _, tensor = name.rpartition(".")
        if layer in stored and tensor != "bias":
            stored[layer] += _size_bytes(file.get_slice(name))
    if missing := [layer for layer, size in stored.items() if not size]:
        raise CheckpointError(f"{transformer} lacks the tensor {missing[0] + '.weight'!r}.")
    size_bytes = sum(stored.values())
    return CheckpointSummary(
        name=folder.resolve().name,
        transformer=raw["_class_name"],
        recipe=plan.recipe,
        weight_bits=8 * size_bytes / num_weights,
        size_bytes=size_bytes,
        float_size_bytes=2 * num_weights,
        num_layers=len(plan.layers),
        num_weights=num_weights,
        provenance=config.provenance,
        layers=_read_layers(transformer),
        plan=plan,
    )


def _read_layers(folder: Path) -> dict[str, LayerDiagnostics]:
    path = folder / LAYERS
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
        return TypeAdapter(dict[str, LayerDiagnostics]).validate_python(data["layers"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as layer diagnostics ({error}).") from None


def _stored_tensors(folder: Path) -> Iterator[tuple[Path, Any, str]]:
    """(file, opened file, tensor name) of every stored tensor."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield path, file, name
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged or cut off ({error}).") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of weights ({error}).") from None
    return [folder / name for name in sorted(names)]


def _read_tensors(
    folder: Path,
    expected: Mapping[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Every tensor of ``expected``, checked; nothing is returned unless all are right."""
    tensors: dict[str, Tensor] = {}
    for path, file, name in _stored_tensors(folder):
        if name not in expected:
            raise CheckpointError(
                f"{path} holds the tensor {name!r}, which the model does not have."
            )
        want, tensor = expected[name], file.get_tensor(name)
        if tensor.shape != want.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(want.shape)}."
            )
        exact = not want.is_floating_point() or name.rpartition(".")[2] in FP32_TENSORS
        if tensor.dtype != want.dtype if exact else not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {name} has dtype {tensor.dtype}, expected {want.dtype}."
            )
        target = tensor.dtype if exact or dtype is None else dtype
        tensors[name] = tensor.to(device=device, dtype=target)
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(
            f"{folder} lacks the tensor {missing[0]!r} ({len(missing)} of {len(expected)} missing)."
        )
    return tensors


def _size_bytes(part: Any) -> int:
    size = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}[part.get_dtype()]
    for length in part.get_shape():
        size *= length
    return size
