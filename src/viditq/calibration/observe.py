"""From recorded calls to statistics: run the float transformer and watch the layer inputs.

Each layer input that several layers share is watched once; of padded inputs (captions), only the
valid tokens count. The second moments of a large model do not fit into memory together, so inputs
are taken in batches that do, each batch one pass over the calibration set, and a pass ends a call
when it has seen what it came for; finished inputs are on disk at once and an interrupted run goes
on with the rest.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viditq.calibration.large import INPUT_EVERY, gram, halved_if_large, is_large
from viditq.calibration.padding import valid_tokens
from viditq.calibration.recorded import CalibrationSet, move
from viditq.errors import CalibrationError
from viditq.models import LayerInfo, adapter_for
from viditq.progress import Track, quiet
from viditq.stats import CalibrationStats, LayerStats

__all__ = ["model_fingerprint", "observe"]

ROWS = 1024
"""Tokens that are kept of a layer input."""


def observe(
    model: nn.Module,
    recorded: CalibrationSet,
    folder: str | Path,
    *,
    layers: Collection[str] | None = None,
    rows: int = ROWS,
    memory_bytes: int = 4 << 30,
    in_memory: bool = False,
    track: Track = quiet,
) -> CalibrationStats:
    """Collect the statistics of layer inputs.

    Args:
        model: the float transformer that the calls were recorded from.
        recorded: its calibration set.
        folder: where the statistics go.
        layers: names of layers whose inputs are wanted now; all by default.
        rows: tokens to keep per layer input, spread evenly over the calls.
        memory_bytes: bound on the statistics held at once; a single input may exceed it.
        in_memory: hold them instead of writing them to ``folder``.
        track: shows progress.

    Raises:
        CalibrationError: the set was recorded from another model, ``folder`` holds the statistics
            of another set, or an input is not finite.
    """
    check_recorded_from(model, recorded)
    readers = adapter_for(model).layers(model)
    inputs = [info for info in readers.values() if info.group == info.name]
    observed = recorded.info.model_dump_json() + str(rows)
    stats = CalibrationStats.create(
        folder,
        observed=hashlib.sha256(observed.encode()).hexdigest()[:16],
        steps=recorded.info.steps,
        layers={name: file_of(info.group) for name, info in readers.items()},
        in_memory=in_memory,
    )
    missing, wanted = stats.missing, {readers[name].group for name in layers or readers}
    waiting = [info for info in inputs if info.name in wanted and file_of(info.name) in missing]
    passes = in_batches(waiting, lambda info: input_bytes(info, rows), memory_bytes)
    for number, batch in enumerate(passes):
        what = "observe" if len(passes) == 1 else f"observe {number + 1}/{len(passes)}"
        for name, layer in _watch(model, recorded, batch, rows, track, what).items():
            stats.write(file_of(name), layer)
    return stats


def input_bytes(info: LayerInfo, rows: int = ROWS) -> int:
    """Size of the statistics of the input of ``info``."""
    return 4 * info.in_features * (info.in_features + rows)


def check_recorded_from(model: nn.Module, recorded: CalibrationSet) -> None:
    """:class:`CalibrationError` if ``recorded`` is of another model."""
    if recorded.info.model != model_fingerprint(model):
        raise CalibrationError(
            f"{recorded.folder} was recorded from another model ({recorded.info.source}); record "
            f"again with this one."
        )


def file_of(name: str) -> str:
    """The file of the layer ``name`` in a folder of statistics."""
    return f"{name}.safetensors"


def model_fingerprint(model: nn.Module) -> str:
    """A short hash of the class, the names, the shapes and sums of all parameters."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in model.named_parameters():
        value = tensor.detach()
        sums = (value.sum(dtype=torch.float64).item(), value.abs().sum(dtype=torch.float64).item())
        digest.update(f"{name}{tuple(value.shape)}{sums[0]:.5e}{sums[1]:.5e}".encode())
    return digest.hexdigest()[:16]


def in_batches(
    infos: Iterable[LayerInfo], size_bytes: Callable[[LayerInfo], int], memory_bytes: int
) -> list[list[LayerInfo]]:
    """Consecutive layers whose statistics fit into ``memory_bytes`` together."""
    batches: list[list[LayerInfo]] = []
    used = math.inf
    for info in infos:
        size = size_bytes(info)
        if used + size > memory_bytes:
            batches.append([])
            used = 0
        batches[-1].append(info)
        used += size
    return batches


def _watch(
    model: nn.Module,
    recorded: CalibrationSet,
    infos: list[LayerInfo],
    rows: int,
    track: Track,
    what: str,
) -> dict[str, LayerStats]:
    """One pass over the calibration set."""
    device = next(model.parameters()).device
    steps = recorded.info.steps
    adapter = adapter_for(model)
    watchers = {info.name: _Watcher(info.in_features, len(steps), device) for info in infos}
    every = INPUT_EVERY if is_large(model) else 1
    share = math.ceil(rows / recorded.count(every))
    handles = [
        model.get_submodule(name).register_forward_pre_hook(watcher.see)
        for name, watcher in watchers.items()
    ]
    once = False
    try:
        with torch.inference_mode(), halved_if_large(model):
            calls = track(recorded.calls(every), what, recorded.count(every))
            for index, call in enumerate(calls):
                arguments = move(call.arguments, device)
                for info in infos:
                    mask = arguments.get(adapter.token_mask(info))
                    position = steps.index(call.step)
                    watchers[info.name].begin(position, call.step, share, index, mask)
                if once:
                    _call_until_seen(model, arguments, watchers)
                else:
                    model(**arguments)
                once = all(watcher.seen == 1 for watcher in watchers.values())
    finally:
        for handle in handles:
            handle.remove()
    for name, watcher in watchers.items():
        if not watcher.count:
            raise CalibrationError(
                f"{name} was not called by any recorded call; leave it out of its adapter "
                f"(docs/adding-a-model.md)."
            )
        if not torch.isfinite(watcher.second_moment).all():
            raise CalibrationError(
                f"The input of {name} is not finite on the calibration set; the float pipeline "
                f"itself overflows: load it in a wider dtype."
            )
    return {name: watcher.stats() for name, watcher in watchers.items()}


class _Seen(Exception):
    """Every watched input has been seen."""


def _call_until_seen(
    model: nn.Module, arguments: Mapping[str, Any], watchers: Mapping[str, "_Watcher"]
) -> None:
    """Call ``model`` as far as needed, if each watched layer is called once in a call."""

    def stop(*_: object) -> None:
        if all(watcher.seen for watcher in watchers.values()):
            raise _Seen

    handles = [model.get_submodule(name).register_forward_pre_hook(stop) for name in watchers]
    try:
        with suppress(_Seen):
            model(**arguments)
    finally:
        for handle in handles:
            handle.remove()


class _Watcher:
    """Accumulates the statistics of one layer input."""

    def __init__(self, features: int, steps: int, device: torch.device) -> None:
        self.step_amax = torch.zeros(steps, features, device=device)
        self.mean = torch.zeros(features, device=device)
        self.second_moment = torch.zeros(features, features, device=device)
        self.count = self.seen = 0
        self.rows: list[Tensor] = []
        self.row_steps: list[Tensor] = []

    def begin(self, position: int, step: int, share: int, seed: int, mask: Tensor | None) -> None:
        """The next call belongs to the kept step at ``position``; keep ``share`` of its tokens.

        ``mask`` (B, L) says which tokens of a padded input count; ``None`` is all.
        """
        self.position, self.step, self.share, self.seed = position, step, share, seed
        self.mask, self.seen = mask, 0

    def see(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        self.seen += 1
        x = arguments[0].detach()
        valid = valid_tokens(x, self.mask)
        if valid is not None:
            x = x[valid]
        x = x.reshape(-1, self.mean.shape[0])
        moment, x = gram(x), x.to(torch.float32)
        amax = self.step_amax[self.position]
        torch.maximum(amax, torch.linalg.vector_norm(x, torch.inf, 0), out=amax)
        self.count += x.shape[0]
        weight = x.shape[0] / self.count
        self.mean.lerp_(x.mean(0), weight)
        self.second_moment.mul_(1 - weight).add_(moment, alpha=1 / self.count)
        chosen = _some(x.shape[0], self.share, self.seed).to(x.device, non_blocking=True)
        self.rows.append(x[chosen])
        self.row_steps.append(torch.full((len(chosen),), self.step))

    def stats(self) -> LayerStats:
        return LayerStats(
            step_amax=self.step_amax.cpu(),
            mean=self.mean.cpu(),
            second_moment=self.second_moment.cpu(),
            rows=torch.cat(self.rows).cpu(),
            row_steps=torch.cat(self.row_steps),
            count=torch.tensor([self.count]),
        )


@lru_cache(maxsize=16)  # inputs of one call have few lengths
def _some(tokens: int, share: int, seed: int) -> Tensor:
    """Up to ``share`` numbers of ``tokens``, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(tokens, generator=generator)[:share]
