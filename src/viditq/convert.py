"""From a float model to a quantized one: balance each layer input, then round each weight once.

:func:`quantize_` walks the plan, layer by layer: it takes the statistics of the layer's input,
makes the balance that all readers of that input share, rounds ``(W · s) H`` once, and puts a
:class:`~viditq.nn.QuantLinear` in the layer's place. Nothing outside the planned layers is touched.
"""

from collections.abc import Iterable, Mapping

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
from viditq.stats import LayerStats

__all__ = [
    "balance_for",
    "check_finite",
    "group_layers",
    "output_sqnr_db",
    "quantize_",
    "quantize_linear",
]


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
        PipelineError: a weight holds NaN or inf.
    """
    infos = planned_layers(model, plan)
    check_finite(model, infos.values())
    groups = group_layers(infos.values())
    diagnostics: dict[str, LayerDiagnostics] = {}
    for name, group in track(groups.items(), "quantize", len(groups)):
        linears = [model.get_submodule(info.name) for info in group]
        layer_stats = stats[name].to(linears[0].weight.device)  # pyright: ignore[reportArgumentType]
        plans = [plan.layers[info.name] for info in group]
        balance = balance_for(plans, [_weight(linear) for linear in linears], layer_stats)
        inputs = LayerDiagnostics.activations(
            layer_stats.rows, balance.activation(layer_stats.rows), layer_stats.row_steps
        )
        for info, linear, layer_plan in zip(group, linears, plans, strict=True):
            assert isinstance(linear, nn.Linear)
            quantized = quantize_linear(linear, layer_plan, balance, layer_stats)
            diagnostics[info.name] = LayerDiagnostics(
                role=info.role,
                weight_format=layer_plan.weight,
                activation_format=layer_plan.activation,
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


def quantize_linear(
    linear: nn.Linear, plan: LayerPlan, balance: Balance, stats: LayerStats
) -> QuantLinear:
    """Round one layer's balanced weight, once.

    Args:
        linear: the float layer, weight (N, K).
        plan: formats and rounding.
        balance: of the layer's input, shared with its other readers.
        stats: of the layer's input.
    """
    fmt = plan.weight_format
    weight = balance.weight(_weight(linear))
    moment, mean = balance.second_moment(stats.second_moment), balance.activation(stats.mean)
    if plan.bias_correction:
        # The mean error goes into the bias, so that rounding only has to mind the rest.
        moment = moment - torch.outer(mean, mean)
    scale = search_scale(weight, fmt, moment) if plan.clip else minmax_scale(weight, fmt)
    if plan.rounding == "gptq":
        codes, scale = round_gptq(weight, scale, fmt, moment)
    else:
        codes = round_nearest(weight, scale, fmt)
    bias = None if linear.bias is None else linear.bias.detach().to(torch.float32)
    if plan.bias_correction:
        shift = (weight - codes.to(weight.dtype) * scale[:, None]) @ mean
        bias = shift if bias is None else bias + shift
    quantized = QuantLinear.like(linear, plan)
    quantized.weight.data = pack(codes, fmt)
    quantized.scale.data = scale
    if bias is not None:
        quantized.bias.data = bias.to(linear.weight.dtype)
    if quantized.smooth is not None:
        assert balance.smooth is not None
        quantized.smooth.data = balance.smooth.clone()
    if quantized.input_scale is not None:
        quantized.input_scale.data = stats.amax / plan.activation_format.qmax
    return quantized


def group_layers(infos: Iterable[LayerInfo]) -> dict[str, list[LayerInfo]]:
    """Layers by shared input, in forward order, under the name of the first of each."""
    groups: dict[str, list[LayerInfo]] = {}
    for info in infos:
        groups.setdefault(info.group, []).append(info)
    return {members[0].name: members for members in groups.values()}


def balance_for(plans: list[LayerPlan], weights: list[Tensor], stats: LayerStats) -> Balance:
    """The balance that all readers of one input share.

    Args:
        plans: of the readers; they must agree on ``smooth`` and ``hadamard``.
        weights: (N_i, K) of the readers.
        stats: of the input.
    """
    if len({(p.smooth, p.hadamard) for p in plans}) != 1:
        raise PlanError("Layers that read the same input need the same smooth and hadamard.")
    weight_amax = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    return make_balance(
        stats.step_amax, weight_amax, alpha=plans[0].smooth, hadamard=plans[0].hadamard
    )


def check_finite(model: nn.Module, infos: Iterable[LayerInfo]) -> None:
    """:class:`PipelineError` naming the first layer whose weight holds NaN or inf."""
    for info in infos:
        if not torch.isfinite(_weight(model.get_submodule(info.name))).all():
            raise PipelineError(
                f"The weight of {info.name} holds NaN or inf; quantize a sound checkpoint."
            )


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach().to(torch.float32)
