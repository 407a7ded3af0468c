"""Quantized transformers on disk, in the layout of diffusers' ``save_pretrained``.

``config.json`` is the float model's, with a ``quantization_config`` that holds the compact plan and
the provenance; the safetensors hold codes, scales and whatever stayed float; ``viditq_layers.json``
holds the diagnostics of each layer, for reports. Loading is strict: every tensor must be there,
with the shape and the kind of number that the plan asks for, or nothing is loaded. Nothing is
pickled.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from viditq import blocks
from viditq.diagnostics import LayerDiagnostics
from viditq.errors import CheckpointError
from viditq.files import write_atomic
from viditq.models import adapter_for, loaded_dtype, transformer_class
from viditq.nn import EXACT_TENSORS, QuantLinear, refuse_restored, replace_
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
    "write_layers",
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
    schema_version: Literal[1] = SCHEMA_VERSION
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
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a quantized transformer.

    Args:
        model: a diffusers model whose planned layers are quantized.
        folder: the ``transformer`` folder of a pipeline; it should not exist or be empty, since
            files are written one after the other.
        plan: what :func:`viditq.convert.quantize_` was given.
        diagnostics: what it returned.
        provenance: where the checkpoint comes from.
        dtype: cast what is outside the quantized layers to it, in place, but for what diffusers
            keeps in fp32 of such a model; ``None`` leaves it.

    Raises:
        CheckpointError: the model was tuned (:func:`viditq.tune_`).
    """
    refuse_restored(model)
    folder = Path(folder)
    config = QuantizationConfig(plan=plan.to_json(), provenance=provenance)
    set_config(model, config)
    if dtype is not None:
        for prefix, module in model.named_modules():
            if not isinstance(module, QuantLinear):
                for name, parameter in module.named_parameters(prefix, recurse=False):
                    parameter.data = parameter.data.to(loaded_dtype(model, name, dtype))
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)  # pyright: ignore
    write_layers(folder / LAYERS, diagnostics)
    return folder


def write_layers(path: Path, diagnostics: Mapping[str, LayerDiagnostics]) -> None:
    """The diagnostics of layers as a file beside their checkpoint, or of its own."""
    layers = {name: layer.model_dump() for name, layer in diagnostics.items()}
    sidecar = {"schema_version": SCHEMA_VERSION, "layers": layers}
    write_atomic(path, json.dumps(sidecar, indent=1))


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    fuse: bool | None = None,
) -> Any:
    """Read a quantized transformer.

    Args:
        folder: the ``transformer`` folder of a quantized pipeline.
        device: where the tensors go.
        dtype: of what stayed float, except scales, smoothing and what diffusers keeps in fp32 of
            such a model; ``None`` leaves it as stored.
        fuse: fuse its blocks (:func:`viditq.blocks.fuse_`); ``None``: where that is faster.

    Returns:
        The diffusers model, in evaluation mode.

    Raises:
        CheckpointError: naming the file, the tensor, what was expected and what was found.
    """
    folder = Path(folder)
    model, config, _ = _quantized_without_storage(folder)
    tensors: dict[str, Tensor] = {}
    for file, name, exact in _stored_tensors(folder, model):
        tensor = file.get_tensor(name)
        own = tensor.dtype if exact or dtype is None else loaded_dtype(model, name, dtype)
        tensors[name] = tensor.to(device, own)
    model.load_state_dict(tensors, assign=True)
    set_config(model, config)
    # What is not stored (position tables and the like) was made on the CPU.
    model = model.to(device).eval()
    if blocks.is_faster(device) if fuse is None else fuse:
        blocks.fuse_(model)
    return model


def _quantized_without_storage(folder: Path) -> tuple[Any, QuantizationConfig, Plan]:
    """The model that ``folder`` describes, with empty quantized layers, and the description."""
    from accelerate import init_empty_weights

    raw, config = read_config(folder)
    path, name = folder / CONFIG, raw.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} does not say which class the model is (_class_name).")
    plan = Plan.from_json(config.plan, where=str(path))
    try:
        with init_empty_weights():
            model = transformer_class(name).from_config(raw)
            if not isinstance(model, nn.Module):
                raise TypeError("it is no model")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} describes no {name} that can be made ({reason}).") from error
    return replace_(model, plan), config, plan


def is_quantized(folder: str | Path) -> bool:
    """Whether ``folder`` (of a transformer) holds a checkpoint of viditq."""
    try:
        config = _read_object(Path(folder) / CONFIG, "a model's configuration")
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
    raw = _read_object(path, "a model's configuration")
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


def _read_object(path: Path, what: str) -> dict[str, Any]:
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
    _check_version(entry, where)
    try:
        return QuantizationConfig(**entry)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {validation_sentence(error)}") from None


def _check_version(data: Mapping[str, Any], where: str) -> None:
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


def inspect(folder: str | Path) -> CheckpointSummary:
    """Summarize a quantized pipeline or transformer; its tensors are checked but not read.

    Of a pipeline with several quantized transformers the numbers are those of all, their layers are
    named with the component before them, and the provenance is that of the first.
    """
    folder = Path(folder)
    first = folder / "transformer"
    if not first.is_dir():
        return _inspect(folder, folder.resolve().name)
    others = sorted(path for path in folder.glob("transformer_*") if is_quantized(path))
    parts = {path.name: _inspect(path, folder.resolve().name) for path in (first, *others)}
    return _together(parts) if others else parts[first.name]


def _together(parts: Mapping[str, CheckpointSummary]) -> CheckpointSummary:
    """One summary of several transformers, by component."""
    first, *_ = summaries = parts.values()
    num_weights = sum(each.num_weights for each in summaries)
    size_bytes = sum(each.size_bytes for each in summaries)
    plans = {f"{n}.{k}": v for n, each in parts.items() for k, v in each.plan.layers.items()}
    return first.model_copy(
        update={
            "weight_bits": 8 * size_bytes / num_weights,
            "size_bytes": size_bytes,
            "float_size_bytes": sum(each.float_size_bytes for each in summaries),
            "num_layers": sum(each.num_layers for each in summaries),
            "num_weights": num_weights,
            "layers": {f"{n}.{k}": v for n, each in parts.items() for k, v in each.layers.items()},
            "plan": first.plan.model_copy(update={"layers": plans}),
        }
    )


def _inspect(transformer: Path, title: str) -> CheckpointSummary:
    model, config, plan = _quantized_without_storage(transformer)
    layers = adapter_for(model).layers(model)
    infos = {name: layers[name] for name in plan.layers}
    num_weights = sum(info.in_features * info.out_features for info in infos.values())
    size_bytes = 0
    expected = model.state_dict()
    for file, name, _ in _stored_tensors(transformer, model):
        layer, _, tensor = name.rpartition(".")
        if layer in infos and tensor != "bias":
            size_bytes += math.prod(file.get_slice(name).get_shape()) * expected[name].itemsize
    return CheckpointSummary(
        name=title,
        transformer=type(model).__name__,
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
    data = _read_object(path, "layer diagnostics")
    _check_version(data, str(path))
    try:
        return TypeAdapter(dict[str, LayerDiagnostics]).validate_python(data.get("layers"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {validation_sentence(error)}") from None


def _stored_tensors(folder: Path, model: nn.Module) -> Iterator[tuple[Any, str, bool]]:
    """Every stored tensor of ``model``, none missing and none more, of the right kind.

    Yields:
        the opened file, the tensor's name, and whether its dtype is part of what is stored (codes
        and scales) or may be changed in loading.
    """
    expected = model.state_dict()
    waiting = dict(expected)
    quantized = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    kept = {f"{name}.{tensor}" for name, _ in quantized for tensor in EXACT_TENSORS}
    for path in _weight_files(folder):
        with open_weights(path) as file:
            for name in file.keys():  # noqa: SIM118
                want = waiting.pop(name, None)
                if want is None:
                    raise CheckpointError(
                        f"{path} holds the tensor {name!r}, which the model does not have."
                    )
                exact = name in kept or not want.is_floating_point()
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if shape != want.shape:
                    raise CheckpointError(
                        f"{path}: {name} has shape {shape}, expected {tuple(want.shape)}."
                    )
                if dtype not in ([_DTYPES[want.dtype]] if exact else _FLOATS):
                    raise CheckpointError(
                        f"{path}: {name} has dtype {dtype}, expected {_DTYPES[want.dtype]}."
                    )
                yield file, name, exact
    refuse_missing(folder, waiting, len(expected))


def open_weights(path: str | Path) -> Any:
    """The opened safetensors; :class:`CheckpointError` if they cannot be read."""
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}).") from None


def refuse_missing(folder: str | Path, missing: Collection[str], expected: int) -> None:
    """:class:`CheckpointError` if any of the ``expected`` tensors are ``missing``."""
    if missing:
        raise CheckpointError(
            f"{folder} lacks the tensor {min(missing)!r} ({len(missing)} of {expected} missing)."
        )


_FLOATS = ("F64", "F32", "F16", "BF16")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""How safetensors calls the dtypes that a model has."""


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    names = _read_object(index, "an index of weights").get("weight_map")
    if not isinstance(names, dict):
        raise CheckpointError(f"{index} cannot be read as an index of weights (no weight_map).")
    return [folder / name for name in sorted({str(name) for name in names.values()})]
