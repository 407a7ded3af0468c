"""The full-size models that are measured: public configurations and one step's inputs.

Weights are random, so nothing is downloaded; shapes, and with them the time, are those of the
published checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from viditq.bench.cases import Fill, ModelCase, Noise, Valid
from viditq.bench.image_models import IMAGE_MODELS
from viditq.bench.video_models import VIDEO_MODELS
from viditq.errors import InputError

__all__ = ["MODELS", "Fill", "ModelCase", "Noise", "Valid", "make_inputs", "models_named"]

MODELS = {case.name: case for case in (*IMAGE_MODELS, *VIDEO_MODELS)}


def models_named(names: tuple[str, ...] | list[str]) -> list[ModelCase]:
    """The models called so, a few when none is named; InputError says which there are."""
    if unknown := [name for name in names if name not in MODELS]:
        raise InputError(f"No model {unknown[0]!r}; give one of {', '.join(MODELS)}.")
    if names:
        return [MODELS[name] for name in names]
    return [case for case in MODELS.values() if case.default]


def make_inputs(case: ModelCase, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of one call, the same at every time on one device."""
    generator = torch.Generator(device).manual_seed(0)

    def made(value: Any) -> Any:
        if isinstance(value, Noise):
            return torch.randn(value.shape, generator=generator, device=device, dtype=dtype)
        if isinstance(value, Fill):
            return torch.full(value.shape, value.value, device=device, dtype=value.dtype)
        if isinstance(value, Valid):
            return _mask(value).to(device)
        if isinstance(value, Mapping):
            return {name: made(part) for name, part in value.items()}
        return value

    return {**made(case.inputs), "return_dict": False}


def _mask(valid: Valid) -> Tensor:
    counts = torch.tensor(valid.counts)
    return (torch.arange(valid.length) < counts[:, None]).to(torch.int64)
