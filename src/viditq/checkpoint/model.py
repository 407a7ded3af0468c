"""A quantized transformer to disk and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viditq import blocks
from viditq.checkpoint.config import CONFIG, Provenance, QuantizationConfig, read_config, set_config
from viditq.checkpoint.layers import LAYERS, write_layers
from viditq.checkpoint.tensors import stored_tensors
from viditq.diagnostics import LayerDiagnostics
from viditq.errors import CheckpointError
from viditq.models import loaded_dtype, transformer_class
from viditq.nn import QuantLinear, refuse_restored, replace_
from viditq.plan import Plan

__all__ = ["load", "quantized_without_storage", "save"]

MAX_SHARD_SIZE = "5GB"


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
    model, config, _ = quantized_without_storage(folder)
    tensors: dict[str, Tensor] = {}
    for file, name, exact in stored_tensors(folder, model):
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


def quantized_without_storage(folder: Path) -> tuple[Any, QuantizationConfig, Plan]:
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
