"""Observe, plan and round a transformer, as many layers at a time as fit into memory.

The second moments of a large model are several times its size. So its layers are taken in windows
whose statistics fit: what a window's layers read is observed, what their outputs are used for, then
they are planned and rounded, and their statistics are dropped. The model stays float until all are
done, so every window sees the float model's activations, and how layers are put into windows does
not change the result. Rounded layers are on disk at once; an interrupted run goes on behind the
last of them.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from viditq.calibration import (
    CalibrationSet,
    input_bytes,
    observe,
    observe_gradients,
    output_bytes,
)
from viditq.convert import group_layers, linear_named, quantized_groups
from viditq.diagnostics import LayerDiagnostics
from viditq.errors import CalibrationError, PlanError
from viditq.files import write_atomic
from viditq.models import LayerInfo, adapter_for
from viditq.nn import QuantLinear, empty_like
from viditq.plan import LayerPlan, Plan
from viditq.planning import make_plan
from viditq.progress import Track, quiet
from viditq.recipe import Recipe

__all__ = ["default_memory_bytes", "quantize_transformer_"]

T = TypeVar("T")


def quantize_transformer_(
    model: nn.Module,
    recipe: Recipe,
    recorded: CalibrationSet,
    folder: str | Path,
    *,
    statistics: str | Path | None = None,
    memory_bytes: int | None = None,
    track: Track = quiet,
) -> tuple[Plan, dict[str, LayerDiagnostics]]:
    """Quantize ``model`` in place as ``recipe`` says, from recorded calls to packed codes.

    Args:
        model: the float transformer that the calls were recorded from.
        recipe: what to do to which layer.
        recorded: its calibration set.
        folder: for rounded layers, from which an interrupted run goes on; what another recipe or
            set left there is replaced. It may be removed afterwards.
        statistics: folder to keep all statistics in, and to find them again; by default they are
            dropped window by window.
        memory_bytes: bound on the statistics held at once (:func:`default_memory_bytes`), on those
            of inputs and of outputs each; those of a single layer may exceed it.
        track: shows progress.

    Returns:
        The plan, and the diagnostics of each quantized layer by name.

    Raises:
        ViditqError: one of its kinds; the model is then as it was.
    """
    folder, adapter = Path(folder), adapter_for(model)
    if memory_bytes is None:
        memory_bytes = default_memory_bytes(next(model.parameters()).device)
    infos = adapter.layers(model)
    wanted = recipe.resolve({name: info.role for name, info in infos.items()})
    if not wanted:
        raise PlanError(f"The recipe {recipe.name!r} leaves every layer of the model float.")
    groups = group_layers(infos[name] for name in infos if name in wanted)
    done = _Rounded(folder / "rounded", f"{recipe.model_dump_json()}{recorded.info}")
    windows = _windows([group for name, group in groups.items() if name not in done], memory_bytes)
    for number, window in enumerate(windows):
        layers = [info.name for group in window for info in group]
        suffix = f" {number + 1}/{len(windows)}" if len(windows) > 1 else ""
        named = _named(track, suffix)
        kept = Path(statistics or folder)
        given = {
            "layers": layers,
            "memory_bytes": memory_bytes,
            "in_memory": statistics is None and _observes_fast(model),
            "track": named,
        }
        stats, gradients = observe(model, recorded, kept / "stats", **given), None
        if recipe.needs_gradients:
            gradients = observe_gradients(model, recorded, kept / "gradients", **given)
        plan = make_plan(model, recipe, stats, gradients, layers=layers, track=named)
        for readers in quantized_groups(model, plan, stats, gradients, track=named):
            done.write(readers)
        if statistics is None:
            for entries in (stats, gradients):
                if entries is not None:
                    entries.discard(layers)
    plans, diagnostics = done.fill(model, groups)
    layers_in_order = {name: plans[name] for name in infos if name in plans}
    plan = Plan(model=adapter.name, recipe=recipe.name, layers=layers_in_order)
    return plan, {name: diagnostics[name] for name in layers_in_order}


def default_memory_bytes(device: torch.device) -> int:
    """4 GiB, on a GPU a twelfth of its memory."""
    if device.type != "cuda":
        return 4 << 30
    return torch.cuda.get_device_properties(device).total_memory // 12


def _observes_fast(model: nn.Module) -> bool:
    """Whether observing a window again takes less time than writing what was seen to disk."""
    return next(model.parameters()).is_cuda


def _windows(groups: Iterable[list[LayerInfo]], memory_bytes: int) -> list[list[list[LayerInfo]]]:
    """Consecutive readers of inputs whose statistics fit into memory, either kind by itself: what
    inputs are and what outputs are used for is not observed in one pass."""
    windows: list[list[list[LayerInfo]]] = []
    inputs = outputs = memory_bytes
    for group in groups:
        inputs += input_bytes(group[0])
        outputs += sum(output_bytes(info) for info in group)
        if max(inputs, outputs) > memory_bytes:
            windows.append([])
            inputs, outputs = input_bytes(group[0]), sum(output_bytes(info) for info in group)
        windows[-1].append(group)
    return windows


def _named(track: Track, suffix: str) -> Track:
    """``track`` with ``suffix`` behind each description."""

    def named(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        return track(items, f"{description}{suffix}", total)

    return named


class _Rounded:
    """Rounded layers on disk, one file for the readers of an input, with plans and diagnostics.

    Args:
        folder: where they are; emptied if it is of another ``origin``.
        origin: all that the layers depend on.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self._folder = folder
        self._origin = hashlib.sha256(origin.encode()).hexdigest()
        self._index = folder / "origin"
        if not self._index.exists() or self._index.read_text("utf-8") != self._origin:
            shutil.rmtree(folder, ignore_errors=True)

    def __contains__(self, first: str) -> bool:
        return self._file(first).exists()

    def _file(self, first: str) -> Path:
        return self._folder / f"{first}.safetensors"

    def write(self, readers: Mapping[str, tuple[QuantLinear, LayerDiagnostics]]) -> None:
        """Write the readers of one input; they appear together."""
        tensors = {
            f"{name}.{key}": tensor.cpu().contiguous()
            for name, (layer, _) in readers.items()
            for key, tensor in layer.state_dict().items()
        }
        facts = {
            name: {"plan": layer.plan.model_dump(), "diagnostics": own.model_dump()}
            for name, (layer, own) in readers.items()
        }
        if not self._index.exists():
            write_atomic(self._index, self._origin)
        file = self._file(next(iter(readers)))
        part = file.with_suffix(".part")
        save_file(tensors, part, metadata={"layers": json.dumps(facts)})
        part.replace(file)

    def fill(
        self, model: nn.Module, groups: Mapping[str, list[LayerInfo]]
    ) -> tuple[dict[str, LayerPlan], dict[str, LayerDiagnostics]]:
        """Put all layers into their places in ``model``; their plans and diagnostics."""
        plans: dict[str, LayerPlan] = {}
        diagnostics: dict[str, LayerDiagnostics] = {}
        for first in groups:  # all of them before the model changes
            for name, own in self._facts(first).items():
                plans[name] = LayerPlan.model_validate(own["plan"])
                diagnostics[name] = LayerDiagnostics.model_validate(own["diagnostics"])
        for first, group in groups.items():
            with safe_open(self._file(first), "pt") as file:
                for name in (info.name for info in group):
                    quantized = empty_like(linear_named(model, name), plans[name])
                    for key, tensor in quantized.state_dict().items():
                        tensor.copy_(file.get_tensor(f"{name}.{key}"))
                    model.set_submodule(name, quantized)
        return plans, diagnostics

    def _facts(self, first: str) -> dict[str, Any]:
        """Plan and diagnostics of each reader, as JSON has them."""
        file = self._file(first)
        try:
            with safe_open(file, "pt") as opened:
                return json.loads((opened.metadata() or {})["layers"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CalibrationError(
                f"{file} cannot be read as rounded layers ({error}); remove it and call again."
            ) from None
