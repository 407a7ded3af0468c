"""``viditq.tune_``: quantized layers that are slower than 16-bit ones here compute in 16 bits.

One call of the transformer shows how many tokens each quantized layer reads; then each distinct
shape is measured as the doctor does it (:mod:`viditq.bench.verdicts`), with layers of the model
itself: those that read one input together in a fused block, each alone in another. Where 16 bits
are faster by more than :data:`MARGIN`, every layer of that shape becomes a
:class:`~viditq.nn.RestoredLinear`. It holds its weight in 16 bits, which costs memory: making it of
the codes at every call would move more bytes than the integer product does.

Declined: layers that something sits on (a LoRA, a hook, offloading); layers that compute in fp32,
where there is nothing to win; and models that are not on a GPU. Not in the times is what fusing
norm, GELU, gate and residual into a quantized layer gains, so that a verdict for 16 bits is worth a
look at the whole step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from viditq.bench.doctor import obstacle_on
from viditq.bench.tables import TextTable
from viditq.bench.verdicts import LayerVerdict, judge, readers, shape_of, verdict_table
from viditq.blocks import is_fused
from viditq.blocks.products import is_untouched
from viditq.errors import InputError
from viditq.models import LayerInfo, adapter_for
from viditq.nn import QuantLinear, RestoredLinear, refuse_saving_
from viditq.ops import balance_rows
from viditq.plan import Value
from viditq.progress import Track, quiet

__all__ = ["Tuning", "tune_"]

MARGIN = 0.05
"""Share of a layer's time that 16 bits must save: less is noise, and not worth the memory."""

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class Tuning(Value):
    """What :func:`tune_` found and did.

    Attributes:
        transformer: its class.
        device: that it was tuned for.
        obstacle: why nothing was measured, in one sentence; None if something was.
        layers: each shape with its times and its verdict: ``bf16`` of those that were replaced.
        replaced: names of the layers that compute in 16 bits now.
        added_bytes: what their weights take more than the codes and scales did.
    """

    transformer: str
    device: str
    obstacle: str | None
    layers: tuple[LayerVerdict, ...]
    replaced: tuple[str, ...]
    added_bytes: int

    @property
    def before_ms(self) -> float:
        """Of all measured layers in one call, quantized."""
        return sum(verdict.all_ours_ms for verdict in self.layers)

    @property
    def after_ms(self) -> float:
        """As they compute now."""
        return sum(verdict.all_ms for verdict in self.layers)

    @property
    def sentence(self) -> str:
        """The result in one line."""
        if self.obstacle is not None:
            return self.obstacle
        seen = sum(verdict.layers for verdict in self.layers)
        if not self.replaced:
            return f"All {seen} quantized layers stay as they are on {self.device}."
        return (
            f"{len(self.replaced)} of {seen} quantized layers compute in 16 bits on {self.device} "
            f"now: all of them are expected to take {self.after_ms:.2f} ms instead of "
            f"{self.before_ms:.2f} ms, and take {self.added_bytes / 2**20:.1f} MiB more."
        )

    def table(self) -> TextTable:
        """One row per shape."""
        return verdict_table(self.transformer, self.layers)


@torch.no_grad()
def tune_(model: nn.Module, run: Callable[[], Any], *, track: Track = quiet) -> Tuning:
    """Let quantized layers that are slower than 16-bit ones on this GPU compute in 16 bits.

    Best done once the model is where it will run, after fusing it and before compiling it. A model
    in which layers were replaced refuses to be saved.

    Args:
        model: a quantized diffusion transformer.
        run: calls ``model`` once, directly or through its pipeline, with inputs of the size that
            it is to be fast for: ``lambda: pipe("a star", num_inference_steps=1)``.
        track: shows progress.

    Returns:
        what was measured and done; its ``sentence`` says it in one line.

    Raises:
        PipelineError: there is no adapter for the model.
        InputError: ``run`` reached no quantized layer.
    """
    infos = _free_layers(model)
    device = next(model.parameters()).device
    obstacle = _declined(infos, device)
    if obstacle is not None:
        return _untuned(model, device, obstacle)
    seen = _inputs_seen(model, infos, run)
    if not seen:
        raise InputError("run called no quantized layer of the model; let it call the transformer.")
    own = [info for name, info in infos.items() if name in seen and seen[name].is_16_bit]
    if not own:
        return _untuned(
            model, device, "The model computes in fp32: only 16-bit products could be faster."
        )
    alike = _by_shape(model, readers(model, own, is_fused), seen)
    lacks = obstacle_on(device)
    verdicts: list[LayerVerdict] = []
    replaced: list[str] = []
    added = 0
    for groups in track(alike, "shapes", len(alike)):
        verdict = _verdict(model, groups, seen[groups[0][0].name], lacks)
        verdicts.append(verdict)
        if verdict.verdict == "bf16":
            refuse_saving_(model)
            names = [info.name for group in groups for info in group]
            added += sum(_restore_(model, name, seen[name].dtype) for name in names)
            replaced += names
    return Tuning(
        transformer=type(model).__name__,
        device=_called(device),
        obstacle=None,
        layers=tuple(verdicts),
        replaced=tuple(replaced),
        added_bytes=added,
    )


@dataclass(frozen=True)
class _Seen:
    """An input (M, K) of a layer."""

    tokens: int
    dtype: torch.dtype

    @property
    def is_16_bit(self) -> bool:
        return self.dtype in SIXTEEN_BITS


def _free_layers(model: nn.Module) -> dict[str, LayerInfo]:
    """The quantized layers that nothing sits on, by name."""
    infos = adapter_for(model).layers(model)
    return {name: info for name, info in infos.items() if _is_free(model.get_submodule(name))}


def _is_free(layer: nn.Module) -> TypeGuard[QuantLinear]:
    return isinstance(layer, QuantLinear) and is_untouched(layer, type(layer))


def _declined(infos: Mapping[str, LayerInfo], device: torch.device) -> str | None:
    """Why there is nothing to measure, in one sentence."""
    if not infos:
        return "The model has no quantized layers that nothing sits on."
    if device.type != "cuda":
        return "The model is not on a GPU: move it to where it will run, then tune it."
    return None


def _untuned(model: nn.Module, device: torch.device, obstacle: str) -> Tuning:
    return Tuning(
        transformer=type(model).__name__,
        device=_called(device),
        obstacle=obstacle,
        layers=(),
        replaced=(),
        added_bytes=0,
    )


def _called(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _inputs_seen(
    model: nn.Module, infos: Mapping[str, LayerInfo], run: Callable[[], Any]
) -> dict[str, _Seen]:
    """The largest input of each layer that ``run`` reaches, by name of the layer."""
    seen: dict[str, _Seen] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            tokens = x.numel() // x.shape[-1]
            if tokens > (seen[name].tokens if name in seen else 0):
                seen[name] = _Seen(tokens, x.dtype)

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in infos]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _by_shape(
    model: nn.Module, groups: Sequence[Sequence[LayerInfo]], seen: Mapping[str, _Seen]
) -> list[list[Sequence[LayerInfo]]]:
    """Groups together that take the same time."""
    alike: dict[object, list[Sequence[LayerInfo]]] = {}
    for group in groups:
        kinds = tuple(_kind(_layer(model, info.name)) for info in group)
        alike.setdefault((seen[group[0].name], kinds), []).append(group)
    return list(alike.values())


def _kind(layer: QuantLinear) -> tuple[object, ...]:
    """What the time of a layer depends on, beside its input."""
    plan = layer.plan
    formats = plan.weight, plan.activation, plan.granularity, plan.group, plan.zero_point, plan.rank
    balance = layer.center is not None, layer.smooth is not None, layer.hadamard
    return layer.in_features, layer.out_features, layer.bias is not None, formats, balance


def _verdict(
    model: nn.Module, groups: Sequence[Sequence[LayerInfo]], seen: _Seen, obstacle: str | None
) -> LayerVerdict:
    """Of all ``groups``, by measuring the first one; none if they cannot be measured."""
    layers = [_layer(model, info.name) for info in groups[0]]
    plans = {info.name: _layer(model, info.name).plan for info in groups[0]}
    shape = shape_of(groups, seen.tokens, plans)
    floats = [RestoredLinear(layer, seen.dtype) for layer in layers]
    x = _random_input(layers[0], seen)
    verdict = judge(shape, x, layers, floats, obstacle, MARGIN)
    return verdict if verdict.is_timed else verdict.model_copy(update={"verdict": None})


def _random_input(layer: QuantLinear, seen: _Seen) -> Tensor:
    """(M, K) for ``layer``; as large as its static scale expects, if it has one."""
    shape, device = (seen.tokens, layer.in_features), layer.weight.device
    x = torch.randn(shape, dtype=seen.dtype, device=device)
    if layer.input_scale is not None:
        amax = balance_rows(x, layer.smooth, layer.hadamard, layer.center).abs().amax()
        x *= layer.input_scale * layer.plan.activation_format.qmax / amax
    return x


def _restore_(model: nn.Module, name: str, dtype: torch.dtype) -> int:
    """Put a 16-bit layer in the place of a quantized one; returns the bytes that it takes more."""
    layer = _layer(model, name)
    restored = RestoredLinear(layer, dtype)
    model.set_submodule(name, restored)
    return restored.size_bytes - layer.size_bytes


def _layer(model: nn.Module, name: str) -> QuantLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer
