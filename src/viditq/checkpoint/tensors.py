"""The tensors of a checkpoint: all of them there, of the shape and kind that is expected, or none.

Safetensors in one file or several with an index, as ``save_pretrained`` writes them.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from viditq.checkpoint.config import read_object
from viditq.errors import CheckpointError
from viditq.nn import EXACT_TENSORS, QuantLinear

__all__ = ["WEIGHTS", "WEIGHTS_INDEX", "open_weights", "refuse_missing", "stored_tensors"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"

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


def stored_tensors(folder: Path, model: nn.Module) -> Iterator[tuple[Any, str, bool]]:
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


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    names = read_object(index, "an index of weights").get("weight_map")
    if not isinstance(names, dict):
        raise CheckpointError(f"{index} cannot be read as an index of weights (no weight_map).")
    return [folder / name for name in sorted({str(name) for name in names.values()})]
