"""The diagnostics that quantized checkpoints carry, arranged for the figures."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from viditq.diagnostics import LayerDiagnostics
from viditq.errors import InputError

__all__ = ["LayerGrid", "grid", "load_layers", "most_uneven"]

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class LayerGrid:
    """Layers in rows by their place inside a block, in columns by block.

    Attributes:
        rows: Row labels, the role where it is unique.
        columns: Number of blocks.
        cells: (row, column) → (layer name, diagnostics).
    """

    rows: tuple[str, ...]
    columns: int
    cells: dict[tuple[int, int], tuple[str, LayerDiagnostics]]


def load_layers(file: Path) -> dict[str, LayerDiagnostics]:
    """Read a checkpoint's ``viditq_layers.json``; an empty dict when there is none.

    Raises InputError naming the file when it is not such a file.
    """
    if not file.is_file():
        return {}
    try:
        layers = json.loads(file.read_bytes())["layers"]
        return {name: LayerDiagnostics.model_validate(layer) for name, layer in layers.items()}
    except (ValueError, KeyError, ValidationError) as error:
        raise InputError(f"{file} does not hold the diagnostics of layers.") from error


def grid(layers: dict[str, LayerDiagnostics]) -> LayerGrid:
    """Arrange layers: ``blocks.3.attn1.to_q`` goes to row ``blocks.*.attn1.to_q``, column 3."""
    rows: dict[str, str] = {}
    cells = {}
    columns = 1
    for name, layer in layers.items():
        index = _INDEX.search(name)
        pattern = _INDEX.sub("*", name, count=1)
        block = int(index.group()) if index else 0
        rows.setdefault(pattern, layer.role)
        cells[list(rows).index(pattern), block] = (name, layer)
        columns = max(columns, block + 1)
    return LayerGrid(_labels(rows), columns, cells)


def _labels(rows: dict[str, str]) -> tuple[str, ...]:
    """A short name for each pattern that no other has: its role, or its end where roles repeat."""
    choices = []
    for pattern, role in rows.items():
        blocks, _, end = pattern.rpartition(".*.")
        kind = blocks.removesuffix("transformer_blocks").strip("_")
        choices.append((role, f"{kind} {role}".strip(), end, f"{kind} {end}".strip(), pattern))
    taken = [Counter(column) for column in zip(*choices, strict=True)]
    return tuple(
        next(name for name, seen in zip(names, taken, strict=True) if seen[name] == 1)
        for names in choices
    )


def most_uneven(
    layers: dict[str, LayerDiagnostics], count: int
) -> list[tuple[str, LayerDiagnostics]]:
    """The layer with the largest input incoherence of each role, the ``count`` largest of them."""
    worst: dict[str, tuple[str, LayerDiagnostics]] = {}
    for name, layer in layers.items():
        seen = worst.get(layer.role)
        if len(layer.steps) > 1 and (
            seen is None or layer.incoherence_before > seen[1].incoherence_before
        ):
            worst[layer.role] = (name, layer)
    ordered = sorted(worst.values(), key=lambda item: -item[1].incoherence_before)
    return ordered[:count]
