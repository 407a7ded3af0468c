"""Refining: a quantized transformer learns to say what the float one says.

Rounding settles each layer for itself and by second moments. What is left can be made smaller by
looking at the output: along recorded trajectories the codes, scales, smoothing and biases of all
layers and the parameters that stayed float move together, by gradients, so that the quantized
model's output comes nearer to the float model's (distillation; that a few codes and the scales
suffice is known from AdaRound, arXiv 2004.10568, and LSQ, arXiv 1902.08153). Nothing is added to
the model, which stays as large and as fast as it was. Trellis codes learn on a GPU only.

The loss is the mean *logarithm* of each sample's squared error: every step and every sample counts
by what its error changes relatively. Plain squared error minds late steps and a few difficult
samples alone. If a call has both branches of classifier-free guidance, what guidance makes of their
errors counts, and theirs are added: they are small beside it, but must not grow, since another
scale may join them otherwise.

It declines to refine models that do not fit into a GPU's memory with their optimizer, and leaves
alone what is in less than fp32. Numbers drawn depend on the update's number alone, and the state is
on disk every now and then, so an interrupted run goes on and ends as it would have.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from viditq.calibration import (
    CalibrationSet,
    RecordedCall,
    check_recorded_from,
    frozen,
    move,
    pad_captions,
    used_output,
)
from viditq.convert import linear_named
from viditq.errors import CalibrationError, PlanError
from viditq.formats import TCQ4
from viditq.nn import QuantLinear, TrainableLinear, check_trainable
from viditq.progress import Track, quiet
from viditq.recipe import Refine

__all__ = ["check_memory", "refine_"]

RATE, WARM_UP = 3e-4, 50
"""The rate of Adam at its highest, in each parameter's unit, and the updates until then."""

LEAST_UNIT = 1e-3
"""A float parameter's unit is its root mean square, and at least this."""

SAVE_EVERY = 100
"""Updates between two states on disk."""

FLOOR = 1e-10
"""Share of the output's power below which an error does not count as smaller."""

BYTES_PER_WEIGHT = 24
"""Both models, latent weights, their gradients and Adam's two moments, in fp32."""


def refine_(
    model: nn.Module,
    reference: nn.Module,
    recorded: CalibrationSet,
    settings: Refine,
    folder: str | Path,
    *,
    track: Track = quiet,
) -> float:
    """Refine ``model`` in place.

    Args:
        model: the quantized transformer, not fused.
        reference: the float transformer that it was made of, on the same device.
        recorded: calls of ``reference`` along its own trajectories.
        settings: how long.
        folder: for the state, from which an interrupted run goes on. It may be removed afterwards.
        track: shows progress.

    Returns:
        By how many dB the loss of the last tenth of all updates is below that of the first.

    Raises:
        PlanError: a layer is of a kind that cannot be refined.
        CalibrationError: the calls are of another model, incomplete, or cannot be put together.
    """
    check_recorded_from(reference, recorded)
    recorded.check_complete()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    if not layers:
        raise PlanError("There are no quantized layers to refine; quantize the model first.")
    for name, layer in layers.items():
        check_trainable(layer, name)
    state = _State(Path(folder) / "refined", settings, recorded, layers)
    with frozen(model), frozen(reference):
        trained, floats = _trainable(layers, reference), _floats(model, layers)
        with _in_places(model, trained, layers), _learning(floats):
            every = (p for layer in trained.values() for p in layer.parameters())
            own = list(dict.fromkeys(every))
            parameters = [*own, *floats]
            groups = [{"params": own, "unit": 1.0}]
            groups += [{"params": [p], "unit": _unit(p)} for p in floats]
            adam = torch.optim.Adam(groups, RATE, betas=(0.9, 0.99), eps=1e-15)
            begun, losses = state.load(adam, parameters)
            updates = range(begun, settings.updates)
            for number in track(updates, "refine", len(updates)):
                for group in adam.param_groups:
                    group["lr"] = _rate(number, settings.updates) * group["unit"]
                adam.zero_grad(set_to_none=True)
                loss = _loss(model, reference, recorded, number, settings.batch)
                adam.step()
                for layer in trained.values():
                    layer.keep_in_range_()
                losses.append(loss.item())
                if (number + 1) % SAVE_EVERY == 0:
                    state.save(adam, parameters, losses)
    for layer in trained.values():
        layer.write_()
    tenth = max(1, len(losses) // 10)
    gained = sum(losses[:tenth]) / tenth - sum(losses[-tenth:]) / tenth
    return 10 / math.log(10) * gained


def check_memory(model: nn.Module, device: torch.device) -> None:
    """:class:`PlanError` if ``model`` is too large to be refined on ``device``, a GPU."""
    if device.type != "cuda":
        return
    needed = BYTES_PER_WEIGHT * sum(parameter.numel() for parameter in model.parameters())
    there = torch.cuda.get_device_properties(device).total_memory
    if needed > there:
        raise PlanError(
            f"Refining this transformer takes {needed / 2**30:.0f} GiB and more, the GPU has "
            f"{there / 2**30:.0f}; take the recipe without [refine]."
        )


def _trainable(
    layers: Mapping[str, QuantLinear], reference: nn.Module
) -> dict[str, TrainableLinear]:
    """Layers that are smoothed alike, as readers of one input are, stay so."""
    trained, shared = {}, {}
    for name, layer in layers.items():
        key = None if layer.smooth is None else layer.smooth.cpu().numpy().tobytes()
        weight = linear_named(reference, name).weight.detach()
        codes = layer.plan.weight_format is not TCQ4 or layer.weight.is_cuda
        trained[name] = TrainableLinear(layer, weight, shared.get(key), codes=codes)
        shared[key] = trained[name].smooth_change
    return trained


def _floats(model: nn.Module, layers: Mapping[str, QuantLinear]) -> list[nn.Parameter]:
    """What is to learn outside the quantized layers."""
    quantized = {id(p) for layer in layers.values() for p in layer.parameters()}
    return [p for p in model.parameters() if id(p) not in quantized and p.dtype == torch.float32]


@contextmanager
def _in_places(
    model: nn.Module, inside: Mapping[str, nn.Module], before: Mapping[str, nn.Module]
) -> Iterator[None]:
    """While entered, ``model`` has the layers ``inside``, then those of ``before`` again."""
    for name, layer in inside.items():
        model.set_submodule(name, layer)
    try:
        yield
    finally:
        for name, layer in before.items():
            model.set_submodule(name, layer)


@contextmanager
def _learning(parameters: Sequence[Tensor]) -> Iterator[None]:
    """While entered, these need gradients; if it fails, they are what they were before."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    except BaseException:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.data.copy_(was)
        raise
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _unit(parameter: Tensor) -> float:
    """What the rate of a float parameter is measured in."""
    return max(LEAST_UNIT, parameter.detach().square().mean().sqrt().item())


def _rate(number: int, updates: int) -> float:
    """Up in a straight line, then down along a cosine."""
    warm = min(1.0, (number + 1) / min(WARM_UP, updates))
    return RATE * warm * 0.5 * (1 + math.cos(math.pi * number / updates))


def _loss(
    model: nn.Module, reference: nn.Module, recorded: CalibrationSet, number: int, batch: int
) -> Tensor:
    """() the mean logarithm of the squared errors in the calls of update ``number``; its gradient
    is in the parameters of ``model``."""
    generator = torch.Generator().manual_seed(number)
    count = -(-batch // recorded.info.batch_size)
    chosen = torch.randint(len(recorded), (count,), generator=generator)
    device = next(reference.parameters()).device
    calls = [recorded.call(int(each)) for each in chosen]
    total = torch.zeros((), device=device)
    for alike in _alike(calls):
        rows = [len(call.arguments["hidden_states"]) for call in alike]
        arguments = move(_together([call.arguments for call in alike], rows), device)
        arguments["return_dict"] = False
        with torch.no_grad():
            target = used_output(reference, reference(**arguments)[0]).float()
        with _tf32():
            error = used_output(model, model(**arguments)[0]).float() - target
            floor, logs = FLOOR * target.square().mean(), []
            for call, own in zip(alike, error.split(rows), strict=True):
                samples = len(recorded.info.groups[call.prompt])
                squares = _squares(own, samples, recorded.info.guidance)
                logs.append((squares + floor).log().mean())
            loss = torch.stack(logs).sum() / count
            loss.backward()
        total += loss.detach()
    return total


def _alike(calls: Sequence[RecordedCall]) -> list[list[RecordedCall]]:
    """The calls in groups that can be put together: of captions without a mask, those of one
    length."""
    groups: dict[str, list[RecordedCall]] = {}
    for call, arguments in zip(calls, pad_captions([c.arguments for c in calls]), strict=True):
        leaves, spec = tree_flatten(arguments)
        kinds = [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        groups.setdefault(f"{spec}{kinds}", []).append(replace(call, arguments=arguments))
    return list(groups.values())


def _squares(error: Tensor, samples: int, guidance: float) -> Tensor:
    """One call's ``error`` (rows, …) squared: (rows,), or (``samples``,) if its rows are the
    branches of guidance, without and with the prompt, together with what guidance makes of them."""
    kinds = [error]
    if len(error) == 2 * samples:
        without, with_prompt = error.chunk(2)
        kinds = [without + guidance * (with_prompt - without), without, with_prompt]
    return torch.stack([kind.square().flatten(1).mean(1) for kind in kinds]).sum(0)


def _together(calls: Sequence[Any], rows: Sequence[int], name: str = "") -> Any:
    """The arguments of several calls as those of one: what has a row for each of a call's rows is
    put together, the rest must agree."""
    first = calls[0]
    if isinstance(first, Mapping):
        return {key: _together([call[key] for call in calls], rows, key) for key in first}
    if isinstance(first, tuple):
        return tuple(_together(parts, rows, name) for parts in zip(*calls, strict=True))
    if isinstance(first, Tensor):
        by_row = all(x.ndim and len(x) == n for x, n in zip(calls, rows, strict=True))
        if by_row and len({x.shape[1:] for x in calls}) == 1:
            return torch.cat(list(calls))
        agree = not by_row and all(torch.equal(first, x) for x in calls)
    else:
        agree = all(first == x for x in calls)
    if not agree:
        raise CalibrationError(
            f"The calls to refine with pass different {name} to the transformer, which cannot be "
            f"put together; take the recipe without [refine]."
        )
    return first


@contextmanager
def _tf32() -> Iterator[None]:
    """Let fp32 products on a GPU be TF32: gradients need no more."""
    backend = torch.backends.cuda.matmul
    before = backend.allow_tf32
    backend.allow_tf32 = True
    try:
        yield
    finally:
        backend.allow_tf32 = before


class _State:
    """Parameters, Adam's moments and losses so far, in one file."""

    def __init__(
        self,
        file: Path,
        settings: Refine,
        recorded: CalibrationSet,
        layers: Mapping[str, QuantLinear],
    ) -> None:
        self._file = file.with_suffix(".safetensors")
        origin = hashlib.sha256(settings.model_dump_json().encode())
        origin.update(recorded.info.model_dump_json().encode())
        for name, layer in layers.items():  # of another recipe they are others
            origin.update(name.encode())
            for tensor in (layer.weight, layer.scale, layer.smooth, layer.center):
                if tensor is not None:
                    stored = tensor.detach().cpu().contiguous()
                    origin.update(stored.view(torch.uint8).numpy().tobytes())
        self._origin = origin.hexdigest()

    def save(
        self, adam: torch.optim.Adam, parameters: Sequence[Tensor], losses: Sequence[float]
    ) -> None:
        tensors = {}
        for i, parameter in enumerate(parameters):
            tensors[f"{i}"] = parameter.detach().cpu()
            for key, value in adam.state[parameter].items():
                tensors[f"{i}.{key}"] = torch.as_tensor(value).cpu()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        save_file(tensors, part, {"origin": self._origin, "losses": json.dumps(list(losses))})
        part.replace(self._file)

    @torch.no_grad()
    def load(self, adam: torch.optim.Adam, parameters: Sequence[Tensor]) -> tuple[int, list[float]]:
        """Fill in what an earlier run of the same origin left; updates it made, and its losses."""
        if not self._file.exists():
            return 0, []
        try:
            with safe_open(self._file, "pt") as file:
                facts = file.metadata() or {}
                if facts.get("origin") != self._origin:
                    return 0, []
                losses = json.loads(facts["losses"])
                known = set(file.keys())
                for i, parameter in enumerate(parameters):
                    parameter.copy_(file.get_tensor(f"{i}"))
                    if f"{i}.step" not in known:  # what the output does not depend on
                        continue
                    adam.state[parameter] = {
                        key: file.get_tensor(f"{i}.{key}").to(
                            "cpu" if key == "step" else parameter.device
                        )
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CalibrationError(
                f"{self._file} cannot be read as the state of refining ({error}); remove it and "
                f"call again."
            ) from None
        return len(losses), losses
