"""From a float model to a quantized one: balance each layer input, then round each weight once.

:func:`quantize_` walks the plan, layer by layer: it takes the statistics of the layer's input,
makes the balance that all readers of that input share, rounds ``(W · s) H`` once, and puts a
:class:`~viditq.nn.QuantLinear` in the layer's place. Nothing outside the planned layers is touched.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from viditq.balancing import Balance, make_balance
from viditq.diagnostics import LayerDiagnostics, sqnr_db
from viditq.errors import PipelineError, PlanError
from viditq.models import LayerInfo
from viditq.nn import QuantLinear, planned_layers
from viditq.plan import LayerPlan, Plan
from viditq.progress import Track, quiet
from viditq.quantizers import minmax_scale, pack, round_gptq, round_nearest, search_scale
from viditq.stats import LayerStats, stats_of

__all__ = [
    "balance_for",
    "check_finite",
    "group_layers",
    "linear_named",
    "output_sqnr_db",
    "quantize_",
    "quantize_readers",
    "round_weight",
]

GPTQ_SWEEPS = 4
"""After four rounds of coordinate descent a fifth gains less than 0.02 dB."""


def quantize_(
    model: nn.Module, plan: Plan, stats: Mapping[str, LayerStats], *, track: Track = quiet
) -> dict[str, LayerDiagnostics]:
    """Quantize the planned layers of ``model`` in place and say what it did to each.

    Args:
        model: a diffusion transformer with an adapter.
        plan: what to do to each layer.
        stats: calibration statistics by layer name.
        track: shows progress.

    Returns:
        Diagnostics of each quantized layer, by name.

    Raises:
        PlanError: the plan names a layer that the model does not have, or layers that share an
            input with different balancing.
        CalibrationError: the statistics are of another model.
        PipelineError: a weight holds NaN or inf.
    """
    infos = planned_layers(model, plan)
    check_finite(model)
    groups = group_layers(infos.values())
    for group in groups.values():
        _check_agreement([plan.layers[info.name] for info in group], group[0].name)
    diagnostics: dict[str, LayerDiagnostics] = {}
    for name, group in track(groups.items(), "quantize", len(groups)):
        linears = [linear_named(model, info.name) for info in group]
        layer_stats = stats_of(stats, name, group[0].in_features).to(linears[0].weight.device)
        plans = [plan.layers[info.name] for info in group]
        balance = balance_for(plans, linears, layer_stats)
        inputs = LayerDiagnostics.activations(
            layer_stats.rows, balance.activation(layer_stats.rows), layer_stats.row_steps
        )
        readers = quantize_readers(linears, plans, balance, layer_stats)
        for info, linear, quantized in zip(group, linears, readers, strict=True):
            diagnostics[info.name] = LayerDiagnostics(
                role=info.role,
                weight_format=quantized.plan.weight,
                activation_format=quantized.plan.activation,
                in_features=info.in_features,
                out_features=info.out_features,
                size_bytes=quantized.size_bytes,
                float_size_bytes=2 * linear.weight.numel(),
                sqnr_db=output_sqnr_db(linear, quantized, layer_stats.rows),
                **inputs,
            )
            model.set_submodule(info.name, quantized)
    return diagnostics


@torch.no_grad()
def output_sqnr_db(linear: nn.Linear, quantized: QuantLinear, rows: Tensor) -> float | None:
    """Signal to quantization noise of the layer's output on ``rows`` (R, K), in dB."""
    reference = nn.functional.linear(rows, _weight(linear))
    output = quantized(rows)
    if linear.bias is not None:
        output = output - linear.bias.to(output.dtype)
    return sqnr_db(output, reference)


def quantize_readers(
    linears: Sequence[nn.Linear],
    plans: Sequence[LayerPlan],
    balance: Balance,
    stats: LayerStats,
    *,
    sweeps: int = GPTQ_SWEEPS,
) -> list[QuantLinear]:
    """Quantize the layers that read one input; each balanced weight is rounded once.

    Args:
        linears: the float layers, weights (N_i, K); those with equal plans are rounded together.
        plans: formats and rounding of each.
        balance: of the input, shared.
        stats: of the input.
        sweeps: rounds of coordinate descent after GPTQ; fewer will do for comparing balances.
    """
    moment, mean = balance.second_moment(stats.second_moment), balance.activation(stats.mean)
    covariance = moment - torch.outer(mean, mean)
    quantized: dict[int, QuantLinear] = {}
    for plan in dict.fromkeys(plans):
        same = [i for i, own in enumerate(plans) if own == plan]
        weight = balance.weight(torch.cat([_weight(linears[i]) for i in same]))
        # A mean error that goes into the bias need not be minded in rounding.
        second = covariance if plan.bias_correction else moment
        codes, scale = round_weight(weight, plan, second, sweeps=sweeps)
        shift = (weight - codes.to(weight.dtype) * scale[:, None]) @ mean
        sizes = [linears[i].out_features for i in same]
        parts = zip(codes.split(sizes), scale.split(sizes), shift.split(sizes), strict=True)
        for i, (own_codes, own_scale, own_shift) in zip(same, parts, strict=True):
            quantized[i] = _fill(linears[i], plan, balance, stats, own_codes, own_scale, own_shift)
    return [quantized[i] for i in range(len(linears))]


def round_weight(
    weight: Tensor, plan: LayerPlan, moment: Tensor, *, sweeps: int = GPTQ_SWEEPS
) -> tuple[Tensor, Tensor]:
    """Codes and scales of a balanced weight.

    Args:
        weight: (N, K) fp32.
        plan: format, clip and rounding.
        moment: (K, K) second moment or covariance of the balanced input.
        sweeps: rounds of coordinate descent after GPTQ.

    Returns:
        codes (N, K) int8 and scale (N,) fp32.
    """
    fmt = plan.weight_format
    scale = search_scale(weight, fmt, moment) if plan.clip else minmax_scale(weight, fmt)
    if plan.rounding == "gptq":
        return round_gptq(weight, scale, fmt, moment, sweeps=sweeps)
    return round_nearest(weight, scale, fmt), scale


def _fill(
    linear: nn.Linear,
    plan: LayerPlan,
    balance: Balance,
    stats: LayerStats,
    codes: Tensor,
    scale: Tensor,
    shift: Tensor,
) -> QuantLinear:
    quantized = QuantLinear.like(linear, plan)
    quantized.weight.data = pack(codes, plan.weight_format)
    quantized.scale.data = scale.clone()
    if quantized.bias is not None:
        bias = linear.bias.detach().float() if linear.bias is not None else torch.zeros_like(shift)
        bias = bias + shift if plan.bias_correction else bias
        quantized.bias.data = bias.to(linear.weight.dtype)
    if quantized.smooth is not None:
        assert balance.smooth is not None
        quantized.smooth.data = balance.smooth.clone()
    if quantized.input_scale is not None:
        quantized.input_scale.data = _largest(stats, balance) / plan.activation_format.qmax
    return quantized


def _largest(stats: LayerStats, balance: Balance) -> Tensor:
    """() fp32: the largest magnitude of the balanced input; of the sampled tokens' if rotated."""
    if balance.hadamard:
        return balance.activation(stats.rows).abs().max()
    return balance.activation(stats.step_amax).abs().max()


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
        plans: of the readers; they must agree on ``smooth`` and ``hadamard``.
        linears: the readers, weights (N_i, K).
        stats: of the input.
    """
    weight_amax = torch.cat([_weight(linear) for linear in linears]).abs().amax(0)
    return make_balance(
        stats.step_amax, weight_amax, alpha=plans[0].smooth, hadamard=plans[0].hadamard
    )


def _check_agreement(plans: Sequence[LayerPlan], name: str) -> None:
    """:class:`PlanError` if the readers of the input of ``name`` are to balance it differently."""
    if len({(p.smooth, p.hadamard) for p in plans}) != 1:
        raise PlanError(
            f"{name} and the layers that read the same input need the same smooth and hadamard."
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
