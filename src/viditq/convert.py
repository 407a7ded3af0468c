"""From a float model to a quantized one: balance each layer input, then round each weight once.

:func:`quantize_` walks the plan, layer by layer: it takes the statistics of the layer's input,
makes the balance that all readers of that input share, rounds ``(W · s) H`` once, and puts a
:class:`~viditq.nn.QuantLinear` in the layer's place. Nothing outside the planned layers is touched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from viditq.balancing import Balance, make_balance, salience_profile, static_profile
from viditq.diagnostics import LayerDiagnostics, sqnr_db
from viditq.errors import CalibrationError, PipelineError, PlanError
from viditq.models import LayerInfo
from viditq.nn import CENTER_DTYPE, QuantLinear, empty_like, planned_layers
from viditq.ops import use_backend
from viditq.plan import LayerPlan, Plan
from viditq.progress import Track, quiet
from viditq.quantizers import (
    GPTQ_SWEEPS,
    Grid,
    Rounded,
    grid_between,
    pack,
    round_weights,
    search_grid,
)
from viditq.stats import LayerStats, stats_of
from viditq.streams import map_streams

__all__ = [
    "balance_for",
    "check_finite",
    "group_layers",
    "linear_named",
    "output_sqnr_db",
    "quantize_",
    "quantize_readers",
    "quantized_groups",
    "working_bytes",
]


def quantize_(
    model: nn.Module,
    plan: Plan,
    stats: Mapping[str, LayerStats],
    gradients: Mapping[str, Tensor] | None = None,
    *,
    track: Track = quiet,
) -> dict[str, LayerDiagnostics]:
    """Quantize the planned layers of ``model`` in place and say what it did to each.

    Args:
        model: a diffusion transformer with an adapter.
        plan: what to do to each layer.
        stats: calibration statistics by layer name.
        gradients: second moments of the gradients at the outputs, by layer name; those of layers
            that are rounded two-sidedly must be there.
        track: shows progress.

    Returns:
        Diagnostics of each quantized layer, by name.

    Raises:
        PlanError: the plan names a layer that the model does not have, or layers that share an
            input with different balancing.
        CalibrationError: the statistics are of another model.
        PipelineError: a weight holds NaN or inf.
    """
    diagnostics: dict[str, LayerDiagnostics] = {}
    for readers in quantized_groups(model, plan, stats, gradients, track=track):
        for name, (quantized, own) in readers.items():
            model.set_submodule(name, quantized)
            diagnostics[name] = own
    return diagnostics


def quantized_groups(
    model: nn.Module,
    plan: Plan,
    stats: Mapping[str, LayerStats],
    gradients: Mapping[str, Tensor] | None = None,
    *,
    track: Track = quiet,
) -> Iterator[dict[str, tuple[QuantLinear, LayerDiagnostics]]]:
    """The quantized layers of each input, by name; see :func:`quantize_`. ``model`` stays."""
    infos = planned_layers(model, plan)
    check_finite(model)
    two_sided = {n for n, layer in plan.layers.items() if layer.rounding == "two_sided"}
    if missing := two_sided - set(gradients or {}):
        raise CalibrationError(
            f"{min(missing)} is to be rounded two-sidedly, and there are no gradients of it; give "
            f"what observe_gradients returns."
        )
    groups = group_layers(infos.values())
    for group in groups.values():
        _check_agreement([plan.layers[info.name] for info in group], group[0].name)
    device = next(model.parameters()).device

    def quantized(group: list[LayerInfo]) -> dict[str, tuple[QuantLinear, LayerDiagnostics]]:
        linears = [linear_named(model, info.name) for info in group]
        layer_stats = stats_of(stats, group[0].name, group[0].in_features).to(device)
        plans, own = [plan.layers[info.name] for info in group], None
        if gradients is not None:
            own = [_on(gradients.get(info.name), device) for info in group]
        return _quantized(group, linears, plans, layer_stats, own)

    found = map_streams(quantized, groups.values(), device, working_bytes)
    yield from track(found, "quantize", len(groups))


def working_bytes(group: Sequence[LayerInfo]) -> int:
    """What rounding the readers of an input takes: of the widest metric fp64 copies and factors."""
    return 28 * max(max(info.in_features, info.out_features) for info in group) ** 2


def _quantized(
    group: Sequence[LayerInfo],
    linears: Sequence[nn.Linear],
    plans: Sequence[LayerPlan],
    stats: LayerStats,
    gradients: Sequence[Tensor | None] | None,
) -> dict[str, tuple[QuantLinear, LayerDiagnostics]]:
    """The readers of one input, by name."""
    balance = balance_for(plans, linears, stats)
    inputs = LayerDiagnostics.activations(
        stats.rows, balance.activation(stats.rows), stats.row_steps
    )
    readers = quantize_readers(linears, plans, balance, stats, gradients)
    found: dict[str, tuple[QuantLinear, LayerDiagnostics]] = {}
    for info, linear, quantized in zip(group, linears, readers, strict=True):
        diagnostics = LayerDiagnostics(
            role=info.role,
            weight_format=quantized.plan.weight,
            activation_format=quantized.plan.activation,
            in_features=info.in_features,
            out_features=info.out_features,
            size_bytes=quantized.size_bytes,
            float_size_bytes=2 * linear.weight.numel(),
            sqnr_db=output_sqnr_db(linear, quantized, stats.rows),
            **inputs,
        )
        found[info.name] = quantized, diagnostics
    return found


@torch.no_grad()
def output_sqnr_db(linear: nn.Linear, quantized: QuantLinear, rows: Tensor) -> float | None:
    """Signal to quantization noise of the layer's output on ``rows`` (R, K), in dB."""
    reference = nn.functional.linear(rows, _weight(linear))
    with use_backend("reference"):  # a figure that is the same whatever the chip
        output = quantized(rows)
    if linear.bias is not None:
        output = output - linear.bias.to(output.dtype)
    return sqnr_db(output, reference)


def quantize_readers(
    linears: Sequence[nn.Linear],
    plans: Sequence[LayerPlan],
    balance: Balance,
    stats: LayerStats,
    gradients: Sequence[Tensor | None] | None = None,
    *,
    sweeps: int = GPTQ_SWEEPS,
) -> list[QuantLinear]:
    """Quantize the layers that read one input; each balanced weight is rounded once.

    Args:
        linears: the float layers, weights (N_i, K); those with equal plans are rounded together.
        plans: formats and rounding of each.
        balance: of the input, shared.
        stats: of the input.
        gradients: (N_i, N_i) of each layer's output, for two-sided rounding; without them it is
            rounded by GPTQ, which will do for comparing balances.
        sweeps: rounds of coordinate descent after GPTQ; fewer will do for comparing balances.
    """
    moment, mean = balance.second_moment(stats.second_moment), balance.difference(stats.mean)
    covariance = moment - torch.outer(mean, mean)
    center = torch.zeros_like(mean)
    if balance.center is not None:
        center = balance.difference(balance.center)
        moment = covariance + torch.outer(mean - center, mean - center)
    quantized: dict[int, QuantLinear] = {}
    for plan in dict.fromkeys(plans):
        same = [i for i, own in enumerate(plans) if own == plan]
        weights = [balance.weight(_weight(linears[i])) for i in same]
        own_gradients = [g for i in same if gradients and (g := gradients[i]) is not None]
        # A mean error that goes into the bias need not be minded in rounding.
        second = covariance if plan.bias_correction else moment
        rounded = round_weights(weights, plan, second, own_gradients or None, sweeps=sweeps)
        for i, weight, own in zip(same, weights, rounded, strict=True):
            shift = weight @ center
            if plan.bias_correction:
                shift += (weight - own.dequantized()) @ (mean - center)
            quantized[i] = _fill(linears[i], plan, balance, stats, own, shift)
    return [quantized[i] for i in range(len(linears))]


def _fill(
    linear: nn.Linear,
    plan: LayerPlan,
    balance: Balance,
    stats: LayerStats,
    rounded: Rounded,
    shift: Tensor,
) -> QuantLinear:
    quantized = empty_like(linear, plan)
    quantized.weight.data = pack(rounded.codes, plan.weight_format)
    quantized.scale.data = rounded.grid.scale.clone()
    if quantized.bias is not None:
        bias = linear.bias.detach().float() if linear.bias is not None else torch.zeros_like(shift)
        quantized.bias.data = (bias + shift).to(quantized.bias.dtype)
    if quantized.smooth is not None:
        assert balance.smooth is not None
        quantized.smooth.data = balance.smooth.clone()
    if quantized.center is not None:
        assert balance.center is not None
        quantized.center.data = balance.center.to(quantized.center.dtype)
    if quantized.input_scale is not None:
        grid = _static_grid(plan, stats, balance)
        quantized.input_scale.data = grid.scale[0]
        if grid.offset is not None:
            quantized.get_parameter("input_offset").data = grid.offset[0]
    if rounded.grid.offset is not None:
        quantized.get_parameter("offset").data = rounded.grid.offset.clone()
    if rounded.branch is not None:
        for name, tensor in zip(("down", "up"), rounded.branch, strict=True):
            quantized.get_parameter(name).data = tensor.contiguous()
    return quantized


def _static_grid(plan: LayerPlan, stats: LayerStats, balance: Balance) -> Grid:
    """Of one row: the grid of all activations, from the largest ever seen or by a search.

    What is rotated or has a zero point is known by the sampled tokens only.
    """
    fmt = plan.activation_format
    rows = balance.activation(stats.rows)
    if plan.clip:
        values = rows.reshape(1, -1)
        return search_grid(values, fmt, torch.ones_like(values[0]), zero_point=plan.zero_point)
    low, high = rows.min().clamp_max(0.0)[None], rows.max().clamp_min(0.0)[None]
    if not balance.hadamard and not plan.zero_point:
        high = balance.activation(stats.step_amax).abs().max()[None]
    return grid_between(low, high, fmt, zero_point=plan.zero_point)


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def group_layers(infos: Iterable[LayerInfo]) -> dict[str, list[LayerInfo]]:
    """Layers by shared input, in forward order, under the name of the first of each."""
    groups: dict[str, list[LayerInfo]] = {}
    for info in infos:
        groups.setdefault(info.group, []).append(info)
    return {members[0].name: members for members in groups.values()}


def balance_for(
    plans: Sequence[LayerPlan], linears: Sequence[nn.Linear], stats: LayerStats
) -> Balance:
    """The balance that all readers of one input share.

    Args:
        plans: of the readers; they must agree on their balance.
        linears: the readers, weights (N_i, K).
        stats: of the input.
    """
    plan, weight = plans[0], torch.cat([_weight(linear) for linear in linears])
    # Rounded as it is stored, so that the bias makes up for just what is taken off.
    center = stats.mean.to(CENTER_DTYPE).float() if plan.center else None
    activation, columns = _magnitudes(plan.profile, stats, center, weight)
    return make_balance(
        activation, columns, alpha=plan.smooth, hadamard=plan.hadamard, center=center
    )


def _magnitudes(
    profile: str, stats: LayerStats, center: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(K,) of the input's channels and of the columns of ``weight`` (N, K), for smoothing."""
    if profile == "rms":
        power = stats.second_moment.diagonal()
        if center is not None:
            power = power - 2 * center * stats.mean + center.square()
        return power.clamp_min(0.0).sqrt(), weight.square().mean(0).sqrt()
    columns = weight.abs().amax(0)
    if profile == "max":
        return stats.step_amax.amax(0), columns
    if profile == "salience":
        return salience_profile(stats.step_amax, columns), columns
    return static_profile(stats.step_amax), columns


def _check_agreement(plans: Sequence[LayerPlan], name: str) -> None:
    """:class:`PlanError` if the readers of the input of ``name`` are to balance it differently."""
    if len({plan.balance for plan in plans}) != 1:
        raise PlanError(
            f"{name} and the layers that read the same input need the same smooth, profile, center "
            f"and hadamard."
        )


def check_finite(model: nn.Module) -> None:
    """:class:`PipelineError` naming the first parameter of ``model`` that holds NaN or inf."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise PipelineError(
                f"The transformer's {name} holds NaN or inf; quantize a sound checkpoint."
            )


def linear_named(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer called ``name``."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _weight(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().to(torch.float32)
