"""Plots, as PNG files: how layer inputs vary and what balancing changes. No number is made here."""

import io
from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from viditq.evaluation.incoherence import Incoherence
from viditq.evaluation.variation import LayerVariation, Profile

__all__ = ["balance", "layer", "summary"]

_BLUE, _ORANGE, _GREY = "#0067a3", "#d55e00", "#767b84"
_WAYS = {
    "raw": ("as it is", "#767b84"),
    "scaled": ("scaled", "#d55e00"),
    "rotated": ("rotated", "#0067a3"),
    "both": ("scaled, then rotated", "#111111"),
}
_TICKS = [step * 10.0**decade for decade in range(-4, 6) for step in (1, 2, 5)]
_LEVELS = {
    "token": "tokens\nlargest / median",
    "condition": "conditions\nlarger / smaller",
    "timestep": "timesteps\nlargest / smallest",
    "channel": "channels\nlargest / median",
}


def summary(title: str, layers: Mapping[str, LayerVariation]) -> bytes:
    """All layers, one dot each: a panel per level and one for the static share, a row per role."""
    roles = _roles(layers)
    figure = Figure(figsize=(13, 1.6 + 0.42 * len(roles)), layout="constrained")
    panels = figure.subplots(1, len(_LEVELS) + 1, sharey=True)
    levels, share = panels[:-1], panels[-1]
    for axes, (level, label) in zip(levels, _LEVELS.items(), strict=True):
        for row, own in enumerate(roles.values()):
            values = [value for one in own if (value := getattr(one, level)) is not None]
            _dots(axes, values, row, _BLUE)
        axes.axvline(1, color=_GREY, linewidth=1)
        _tidy(axes, label)
    _log_scale(levels, 0.9, 2.2, "{x:g}×")
    for row, own in enumerate(roles.values()):
        _dots(share, [100 * one.static_share for one in own], row, _ORANGE)
    share.axvline(100, color=_GREY, linewidth=1)
    share.set_xlim(0, 104)
    share.set_xticks(range(0, 101, 25))
    share.xaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    _tidy(share, "static share: channel pattern\nthat is the same at every step")
    panels[0].set_yticks(range(len(roles)), list(roles))
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{title}: how the inputs of the linear layers vary (1× = not at all, a dot = a layer)",
        x=0.01,
        ha="left",
    )
    return _png(figure)


def balance(title: str, layers: Mapping[str, LayerVariation]) -> bytes:
    """Incoherence before and after balancing: of inputs and weights, a band per role."""
    roles = _roles(layers)
    figure = Figure(figsize=(13, 1.9 + 0.75 * len(roles)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    measures = {
        "token": "inputs: the median token",
        "worst_token": "inputs: the worst token",
        "weight": "weights: the median output channel",
    }
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        for row, own in enumerate(roles.values()):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color="#f1f3f5", linewidth=0, zorder=0)
            for place, (way, (_, colour)) in enumerate(_WAYS.items()):
                values = [getattr(getattr(one.incoherence, measure), way) for one in own]
                height = row + 0.2 * (place - 1.5)
                middle = median(values)
                axes.plot([1, middle], [height, height], color=colour, linewidth=2.5, alpha=0.9)
                _dots(axes, values, height, colour, size=14)
        _tidy(axes, label)
        axes.set_xlabel("max / mean of the magnitudes")
    _log_scale(panels, 1, 8, "{x:g}")
    panels[0].set_yticks(range(len(roles)), list(roles))
    panels[0].set_ylim(len(roles) - 0.5, -0.5)
    figure.legend(
        handles=[
            Line2D([], [], color=c, linewidth=2.5, label=label) for label, c in _WAYS.values()
        ],
        loc="outside lower center",
        ncols=len(_WAYS),
        frameon=False,
    )
    figure.suptitle(
        f"{title}: how hard the layers are to quantize, before and after balancing "
        "(bar = median layer, dot = a layer; shorter is easier)",
        x=0.01,
        ha="left",
    )
    return _png(figure)


def layer(name: str, variation: LayerVariation, profile: Profile) -> bytes:
    """One layer: its four levels, its static and dynamic pattern, and what balancing does."""
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    panels = figure.subplots(2, 3)
    (token, condition, timestep), (channel, pattern, balanced) = panels

    token.plot(profile.tokens.numpy(), color=_BLUE)
    token.set_xlabel("token, largest first")
    _tidy(token, f"tokens of one call: {variation.token:.1f}× the median")

    steps = profile.steps.numpy()
    colours = (_GREY, _BLUE)
    for index, label in enumerate(("without prompt", "with prompt")[: profile.conditions.shape[1]]):
        values = profile.conditions[:, index].numpy()
        condition.plot(steps, values, color=colours[index], label=label)
    if variation.condition is None:
        _tidy(condition, "one condition only")
    else:
        condition.legend(frameon=False, fontsize=8)
        _tidy(condition, f"conditions: {variation.condition:.2f}×")

    timestep.plot(steps, profile.conditions.amax(dim=1).numpy(), color=_BLUE)
    _tidy(timestep, f"timesteps: {variation.timestep:.2f}×")

    for index, colour, label in ((0, _BLUE, "first step"), (-1, _ORANGE, "last step")):
        values = profile.channels[index].numpy()
        channel.plot(values, color=colour, linewidth=0.8, label=label, alpha=0.85)
    channel.set_xlabel("channel")
    channel.legend(frameon=False, fontsize=8)
    _tidy(channel, f"channels: {variation.channel:.1f}× the median")

    for axes in (token, condition, timestep, channel):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("largest |input|", fontsize=8)
    _pattern(pattern, profile, variation.static_share)
    _by_step(balanced, profile, variation.incoherence)
    for axes in (condition, timestep, balanced):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{name} ({variation.role})", x=0.01, ha="left")
    return _png(figure)


def _pattern(axes: Axes, profile: Profile, share: float) -> None:
    """The channels by their static part, with the range over the steps around it."""
    parts = profile.pattern
    order = parts.static.argsort(descending=True)
    static, dynamic = parts.static[order].exp2(), parts.dynamic[:, order].exp2()
    if len(dynamic):
        low, high = (static * edge for edge in dynamic.aminmax(dim=0))
        axes.fill_between(
            range(len(static)),
            low,
            high,
            color=_ORANGE,
            alpha=0.35,
            linewidth=0,
            label="range over the steps",
        )
    axes.plot(static.numpy(), color=_BLUE, label="static: mean over the steps")
    axes.set_yscale("log")
    _log_axis(axes.yaxis, *axes.get_ylim(), "{x:g}×")
    axes.set_xlabel("channel, largest first")
    axes.set_ylabel("of the step's level", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes, f"channel pattern: static share {100 * share:.0f} %")


def _by_step(axes: Axes, profile: Profile, incoherence: Incoherence) -> None:
    """The median token's incoherence along the steps, in the four ways."""
    for way, (label, colour) in _WAYS.items():
        values = [getattr(step, way) for step in incoherence.token_by_step]
        axes.plot(profile.steps.numpy(), values, color=colour, label=label)
    axes.set_ylim(bottom=1, top=axes.get_ylim()[1] * 1.35)
    axes.set_ylabel("max / mean |input|", fontsize=8)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    _tidy(axes, "incoherence of the median token")


def _roles(layers: Mapping[str, LayerVariation]) -> dict[str, list[LayerVariation]]:
    roles: dict[str, list[LayerVariation]] = {}
    for one in layers.values():
        roles.setdefault(one.role, []).append(one)
    return roles


def _dots(axes: Axes, values: list[float], row: float, colour: str, size: float = 22) -> None:
    axes.scatter(values, [row] * len(values), s=size, color=colour, alpha=0.55, linewidths=0)


def _log_scale(panels: Sequence[Axes], low: float, least_high: float, form: str) -> None:
    """The same logarithmic horizontal axis for all panels."""
    high = max(least_high, *(1.1 * axes.dataLim.x1 for axes in panels))
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        _log_axis(axes.xaxis, low, high, form)


def _log_axis(axis: Axis, low: float, high: float, form: str) -> None:
    """Ticks at 1, 2, 5 and their decades."""
    axis.set_major_locator(FixedLocator([t for t in _TICKS if low <= t <= high]))
    axis.set_major_formatter(StrMethodFormatter(form))
    axis.set_minor_formatter(NullFormatter())


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
