"""What is in a checkpoint, without reading its tensors."""

import math
from collections.abc import Mapping
from pathlib import Path

from viditq.checkpoint.config import Provenance, is_quantized
from viditq.checkpoint.layers import read_layers
from viditq.checkpoint.model import quantized_without_storage
from viditq.checkpoint.tensors import stored_tensors
from viditq.diagnostics import LayerDiagnostics
from viditq.models import adapter_for
from viditq.plan import Plan, Value

__all__ = ["CheckpointSummary", "inspect"]


class CheckpointSummary(Value):
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
    model, config, plan = quantized_without_storage(transformer)
    layers = adapter_for(model).layers(model)
    infos = {name: layers[name] for name in plan.layers}
    num_weights = sum(info.in_features * info.out_features for info in infos.values())
    size_bytes = 0
    expected = model.state_dict()
    for file, name, _ in stored_tensors(transformer, model):
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
        layers=read_layers(transformer),
        plan=plan,
    )
