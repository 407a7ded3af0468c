"""From a recipe's candidates to a plan: each layer input gets the balance that hurts least.

ViDiT-Q uses one α and one rotation for a whole model; how much they help differs from layer to
layer, and on a layer without outliers a rotation can cost. So every candidate is carried out on the
layers that read an input, and the one with the smallest output error on the calibration tokens,
summed over these layers, is taken. The error is that of the real layer, activations quantized too.
With gradients it counts as what it does to the model's output, otherwise as it is, relative to the
layer's own. What it does to the picture is not asked here.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from viditq.convert import (
    balance_for,
    check_finite,
    group_layers,
    linear_named,
    quantize_readers,
    working_bytes,
)
from viditq.errors import PlanError
from viditq.models import LayerInfo, adapter_for
from viditq.ops import use_backend
from viditq.plan import LayerPlan, Plan
from viditq.progress import Track, quiet
from viditq.recipe import Recipe
from viditq.stats import LayerStats, stats_of
from viditq.streams import map_streams

__all__ = ["make_plan"]


def make_plan(
    model: nn.Module,
    recipe: Recipe,
    stats: Mapping[str, LayerStats],
    gradients: Mapping[str, Tensor] | None = None,
    *,
    layers: Collection[str] | None = None,
    track: Track = quiet,
) -> Plan:
    """Resolve ``recipe`` for ``model``.

    Args:
        model: the float transformer.
        recipe: rules; where a field lists candidates, the measured output error decides.
        stats: calibration statistics by layer name.
        gradients: second moments of the gradients at the outputs, by layer name; an input is
            judged by them if they are there for all its readers.
        layers: names of the layers that the plan is to be of; by default all that the recipe
            quantizes.
        track: shows progress.
    """
    adapter = adapter_for(model)
    infos = adapter.layers(model)
    check_finite(model)
    candidates = recipe.resolve({name: info.role for name, info in infos.items()})
    if not candidates:
        raise PlanError(f"The recipe {recipe.name!r} leaves every layer of the model float.")
    wanted = candidates if layers is None else candidates.keys() & layers
    groups = group_layers(info for name, info in infos.items() if name in wanted)
    device = next(model.parameters()).device

    @torch.no_grad()
    def best(group: list[LayerInfo]) -> dict[str, LayerPlan]:
        options = _joint_options([candidates[info.name] for info in group])
        found = options[0]
        if len(options) > 1:
            linears = [linear_named(model, info.name) for info in group]
            layer_stats = stats_of(stats, group[0].name, group[0].in_features).to(device)
            own = [g for info in group if gradients and (g := gradients.get(info.name)) is not None]
            weights = own if len(own) == len(group) else None
            found = min(
                options, key=lambda plans: _output_error(linears, plans, layer_stats, weights)
            )
        return {info.name: plan for info, plan in zip(group, found, strict=True)}

    chosen: dict[str, LayerPlan] = {}
    choices = map_streams(best, groups.values(), device, working_bytes)
    for choice in track(choices, "plan", len(groups)):
        chosen |= choice
    return Plan(model=adapter.name, recipe=recipe.name, layers=chosen)


def _joint_options(candidates: list[list[LayerPlan]]) -> list[list[LayerPlan]]:
    """One plan for each reader of an input, for every balance that all of them allow."""
    by_choice = [{(p.balance, p.group, p.rank): p for p in own} for own in candidates]
    options = [
        [own[choice] for own in by_choice]
        for choice in by_choice[0]
        if all(choice in own for own in by_choice)
    ]
    if not options:
        raise PlanError("The recipe gives layers that read the same input different balancing.")
    return options


def _output_error(
    linears: list[nn.Linear],
    plans: list[LayerPlan],
    stats: LayerStats,
    gradients: list[Tensor] | None,
) -> float:
    """Squared output error on the sampled tokens, summed over the layers."""
    balance = balance_for(plans, linears, stats)
    # Which balance is best does not depend on how numbers of 4 bits are coded, and int4 is quick.
    quick = {"weight": "int4", "clip": True}
    plans = [p.model_copy(update=quick) if p.weight == "tcq4" else p for p in plans]
    total = 0.0
    readers = quantize_readers(linears, plans, balance, stats, sweeps=0)
    for number, (linear, reader) in enumerate(zip(linears, readers, strict=True)):
        reference = nn.functional.linear(stats.rows, linear.weight.float(), _float(linear.bias))
        with use_backend("reference"):  # a choice that is the same whatever the chip
            error = reader(stats.rows) - reference
        if gradients is None:
            weighted = error.square().sum() / reference.square().sum().clamp_min(1e-30)
        else:
            weighted = ((error @ gradients[number].to(error.device)) * error).sum()
        total += weighted.item()
    return total


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
