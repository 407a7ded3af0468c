"""What an error at a layer's output does to the model's: gradients along recorded calls.

For each recorded call the model's output is multiplied by random numbers and differentiated; the
gradient that arrives at a layer's output says how much the model would change with it. Its second
moment (K-FAC's factor of the output, arXiv 1503.05671) is what :mod:`viditq.quantizers.two_sided`
weighs errors with, and planning. A call counts relative to the gradient at the layer it reaches
first: late steps, at which the network's output is steeper by an order of magnitude, would decide
alone otherwise. Layers keep their proportions to each other.

Moments are taken in batches that fit into memory, each one pass over the set, forward and backward;
finished layers are on disk at once. Of a large model activations are computed again instead of
kept, and one call in four does: it has thousands of tokens. Only what the sampler uses of
the output counts: of a model that predicts a variance too, the first half.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from viditq.calibration.large import GRADIENT_EVERY, gram, halved_if_large, is_large
from viditq.calibration.observe import check_recorded_from, file_of, in_batches
from viditq.calibration.recorded import CalibrationSet, move
from viditq.models import LayerInfo, adapter_for
from viditq.progress import Track, quiet
from viditq.stats import GradientStats

__all__ = ["frozen", "observe_gradients", "used_output"]

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's: its backward reads memory that is not its own (FLUX, torch 2.11, one H200)."""


def observe_gradients(
    model: nn.Module,
    recorded: CalibrationSet,
    folder: str | Path,
    *,
    layers: Collection[str] | None = None,
    memory_bytes: int = 4 << 30,
    in_memory: bool = False,
    track: Track = quiet,
) -> GradientStats:
    """Collect the second moment of the gradient at the outputs of the linear layers of blocks.

    Args:
        model: the float transformer that the calls were recorded from.
        recorded: its calibration set.
        folder: where the moments go.
        layers: names of those that are wanted now; all by default.
        memory_bytes: bound on the moments held at once; a single one may exceed it.
        in_memory: hold them instead of writing them to ``folder``.
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
        in_memory=in_memory,
    )
    missing, wanted = stats.missing, infos if layers is None else layers
    waiting = [info for info in infos.values() if info.name in wanted]
    waiting = [info for info in waiting if file_of(info.name) in missing]
    passes = in_batches(waiting, output_bytes, memory_bytes)
    for number, batch in enumerate(passes):
        what = "gradients" if len(passes) == 1 else f"gradients {number + 1}/{len(passes)}"
        with frozen(model), halved_if_large(model), sdpa_kernel(_ATTENTION):
            moments, levels = _moments(model, recorded, batch, stats.levels, track, what)
        stats.write_levels(levels)
        for name, moment in moments.items():
            stats.write(file_of(name), moment)
    return stats


def output_bytes(info: LayerInfo) -> int:
    """Size of the moment at the output of ``info``."""
    return 4 * info.out_features**2


def _moments(
    model: nn.Module,
    recorded: CalibrationSet,
    infos: list[LayerInfo],
    levels: Tensor | None,
    track: Track,
    what: str,
) -> tuple[dict[str, Tensor], Tensor]:
    """One pass over the calibration set; ``levels`` (calls,) are those an earlier pass found."""
    parameter = next(model.parameters())
    level = _Level()
    gatherers = {info.name: _Gatherer(info.out_features, level, parameter.device) for info in infos}
    # Whichever layers are gathered in this pass, the level is that of all; it hears of each first.
    # Once the levels are known, nothing before the first of ``infos`` is differentiated.
    listening = [] if levels is not None else adapter_for(model).layers(model)
    everywhere = dict.fromkeys(listening, level)
    handles = [
        model.get_submodule(name).register_forward_hook(_forward_hook(watcher.add))
        for name, watcher in (*everywhere.items(), *gatherers.items())
    ]
    generator = torch.Generator().manual_seed(0)
    every, found = GRADIENT_EVERY if is_large(model) else 1, []
    try:
        calls = track(recorded.calls(every), what, recorded.count(every))
        for number, call in enumerate(calls):
            level.value = None if levels is None else levels[number].to(parameter.device)
            output = used_output(model, model(**move(call.arguments, parameter.device))[0])
            direction = torch.randn(output.shape, generator=generator)
            output.backward(direction.to(output.device, output.dtype))
            assert level.value is not None
            found.append(level.value)
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: gatherer.moment() for name, gatherer in gatherers.items()}
    return moments, torch.stack(found).cpu()


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Without gradients of parameters; a large model keeps only its blocks' inputs, if it can."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    able = getattr(model, "_supports_gradient_checkpointing", False)
    checkpointing = able and is_large(model) and not model.is_gradient_checkpointing
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


def used_output(model: Any, output: Tensor) -> Tensor:
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
        level = self._level.value
        assert level is not None
        moment = gram(gradient.reshape(-1, self._sum.shape[0]))
        self._sum.addcmul_(moment, torch.where(level > 0, 1 / level, 0.0))
        self._calls += 1

    def moment(self) -> Tensor:
        return (self._sum / max(self._calls, 1)).cpu()
