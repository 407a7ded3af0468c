"""What an error at a layer's output does to the model's: gradients along recorded calls.

For each recorded call the model's output is multiplied by random numbers and differentiated; the
gradient that arrives at a layer's output says how much the model would change with it. Its second
moment (K-FAC's factor of the output, arXiv 1503.05671) is what :mod:`viditq.quantizers.two_sided`
weighs errors with, and planning. A call counts relative to the gradient at the layer it reaches
first: late steps, at which the network's output is steeper by an order of magnitude, would decide
alone otherwise. Layers keep their proportions to each other.

Moments are taken in batches that fit into memory, each one pass over the set, forward and backward
with checkpointed activations; finished layers are on disk at once. Only what the sampler uses of
the output counts: of a model that predicts a variance too, the first half.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viditq.calibration.observe import check_recorded_from, file_of, in_batches
from viditq.calibration.recorded import CalibrationSet, move
from viditq.models import LayerInfo, adapter_for
from viditq.progress import Track, quiet
from viditq.stats import GradientStats

__all__ = ["observe_gradients"]

LARGE = 1 << 28
"""Parameters above which activations are computed again in the backward pass."""


def observe_gradients(
    model: nn.Module,
    recorded: CalibrationSet,
    folder: str | Path,
    *,
    memory_bytes: int = 4 << 30,
    track: Track = quiet,
) -> GradientStats:
    """Collect the second moment of the gradient at the output of every linear layer of a block.

    Args:
        model: the float transformer that the calls were recorded from.
        recorded: its calibration set.
        folder: where the moments go.
        memory_bytes: bound on the moments held at once; a single one may exceed it.
        track: shows progress.

    Raises:
        CalibrationError: the set was recorded from another model, or ``folder`` holds moments of
            another set.
    """
    check_recorded_from(model, recorded)
    infos = adapter_for(model).layers(model)
    stats = GradientStats.create(
        folder,
        observed=hashlib.sha256(recorded.info.model_dump_json().encode()).hexdigest()[:16],
        steps=recorded.info.steps,
        layers={name: file_of(name) for name in infos},
    )
    missing = stats.missing
    waiting = [info for name, info in infos.items() if file_of(name) in missing]
    passes = in_batches(waiting, lambda info: 4 * info.out_features**2, memory_bytes)
    for number, batch in enumerate(passes):
        what = "gradients" if len(passes) == 1 else f"gradients {number + 1}/{len(passes)}"
        with _frozen(model):
            moments = _moments(model, recorded, batch, track, what)
        for name, moment in moments.items():
            stats.write(file_of(name), moment)
    return stats


def _moments(
    model: nn.Module, recorded: CalibrationSet, infos: list[LayerInfo], track: Track, what: str
) -> dict[str, Tensor]:
    """One pass over the calibration set."""
    parameter = next(model.parameters())
    level = _Level()
    gatherers = {info.name: _Gatherer(info.out_features, level, parameter.device) for info in infos}
    # Whichever layers are gathered in this pass, the level is that of all; it hears of each first.
    everywhere = dict.fromkeys(adapter_for(model).layers(model), level)
    handles = [
        model.get_submodule(name).register_forward_hook(_forward_hook(watcher.add))
        for name, watcher in (*everywhere.items(), *gatherers.items())
    ]
    generator = torch.Generator().manual_seed(0)
    try:
        for call in track(recorded, what, len(recorded)):
            level.value = None
            output = _used(model, model(**move(call.arguments, parameter.device))[0])
            direction = torch.randn(output.shape, generator=generator)
            output.backward(direction.to(output.device, output.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gatherer.moment() for name, gatherer in gatherers.items()}


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Without gradients of parameters; a large model keeps only its blocks' inputs, if it can."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in model.parameters())
    able = getattr(model, "_supports_gradient_checkpointing", False)
    checkpointing = able and size > LARGE and not model.is_gradient_checkpointing
    for parameter in trained:
        parameter.requires_grad_(False)
    if checkpointing:
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if checkpointing:
            model.disable_gradient_checkpointing()
        for parameter in trained:
            parameter.requires_grad_(True)


def _used(model: Any, output: Tensor) -> Tensor:
    """What a sampler uses of the output: not the variance that some models predict beside it."""
    config = getattr(model, "config", {})
    channels, out = config.get("in_channels"), config.get("out_channels")
    return output.chunk(2, dim=1)[0] if channels and out == 2 * channels else output


def _forward_hook(add: Callable[[Tensor], None]) -> Callable[..., None]:
    """A forward hook that hands the gradient at a layer's output to ``add``."""

    def see(module: nn.Module, arguments: object, output: Tensor) -> None:  # noqa: ARG001
        if not output.requires_grad:  # nothing before this layer is differentiated
            output.requires_grad_(True)
        output.register_hook(add)

    return see


class _Level:
    """Of the current call: the squared gradient at the layer that it reaches first."""

    value: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        if self.value is None:
            self.value = gradient.float().square().sum()


class _Gatherer:
    """Accumulates the gradient's second moment at one layer's output."""

    def __init__(self, features: int, level: _Level, device: torch.device) -> None:
        self._level = level
        self._sum = torch.zeros(features, features, device=device)
        self._calls = 0

    def add(self, gradient: Tensor) -> None:
        rows = gradient.reshape(-1, self._sum.shape[0]).float()
        level = self._level.value
        assert level is not None
        self._sum += torch.where(level > 0, rows.T @ rows / level, 0.0)
        self._calls += 1

    def moment(self) -> Tensor:
        return (self._sum / max(self._calls, 1)).cpu()
