"""What conversion measured at each layer, as a file beside the checkpoint, for reports."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from viditq.checkpoint.config import SCHEMA_VERSION, check_version, read_object
from viditq.diagnostics import LayerDiagnostics
from viditq.errors import CheckpointError
from viditq.files import write_atomic
from viditq.plan import validation_sentence

__all__ = ["LAYERS", "read_layers", "write_layers"]

LAYERS = "viditq_layers.json"


def write_layers(path: Path, diagnostics: Mapping[str, LayerDiagnostics]) -> None:
    """The diagnostics of layers as a file beside their checkpoint, or of its own."""
    layers = {name: layer.model_dump() for name, layer in diagnostics.items()}
    sidecar = {"schema_version": SCHEMA_VERSION, "layers": layers}
    write_atomic(path, json.dumps(sidecar, indent=1))


def read_layers(folder: Path) -> dict[str, LayerDiagnostics]:
    path = folder / LAYERS
    if not path.exists():
        return {}
    data = read_object(path, "layer diagnostics")
    check_version(data, str(path))
    try:
        return TypeAdapter(dict[str, LayerDiagnostics]).validate_python(data.get("layers"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {validation_sentence(error)}") from None
