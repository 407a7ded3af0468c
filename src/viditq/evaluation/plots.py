"""Plots of the four levels of variation, as PNG files. Numbers are in ``variation``, none here."""

import io
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from viditq.evaluation.variation import LayerVariation, Profile

__all__ = ["layer", "summary"]

_BLUE, _ORANGE, _GREY = "#0067a3", "#d55e00", "#767b84"
_LEVELS = {
    "token": "tokens\nlargest / median",
    "condition": "conditions\nlarger / smaller",
    "timestep": "timesteps\nlargest / smallest",
    "channel": "channels\nlargest / median",
}


def summary(title: str, layers: Mapping[str, LayerVariation]) -> bytes:
    """All layers, one dot each: a panel per level, a row per role."""
    roles = list(dict.fromkeys(layer.role for layer in layers.values()))
    figure = Figure(figsize=(11, 1.5 + 0.42 * len(roles)), layout="constrained")
    panels = figure.subplots(1, len(_LEVELS), sharex=True, sharey=True)
    for axes, (level, label) in zip(panels, _LEVELS.items(), strict=True):
        for row, role in enumerate(roles):
            values = [
                value
                for layer in layers.values()
                if layer.role == role and (value := getattr(layer, level)) is not None
            ]
            axes.scatter(values, [row] * len(values), s=22, color=_BLUE, alpha=0.55, linewidths=0)
        axes.axvline(1, color=_GREY, linewidth=1)
        _tidy(axes, label)
    panels[0].set_xscale("log")
    low, high = 0.9, max(2.2, panels[0].get_xlim()[1])
    panels[0].set_xlim(low, high)
    ticks = [step * 10**decade for decade in range(6) for step in (1, 2, 5)]
    panels[0].xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick < high]))
    panels[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yticks(range(len(roles)), roles)
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{title}: how the inputs of the linear layers vary (1 = not at all)", x=0.01, ha="left"
    )
    return _png(figure)


def layer(name: str, variation: LayerVariation, profile: Profile) -> bytes:
    """The four levels of one layer, as the magnitudes that a scale would have to hold."""
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    token, condition, timestep, channel = figure.subplots(1, 4)

    token.plot(profile.tokens.numpy(), color=_BLUE)
    token.set_xlabel("token, largest first")
    token.set_ylim(bottom=0)
    _tidy(token, f"tokens of one call: {variation.token:.1f}×")

    steps = profile.steps.numpy()
    colours = (_GREY, _BLUE)
    for index, label in enumerate(("without prompt", "with prompt")[: profile.conditions.shape[1]]):
        values = profile.conditions[:, index].numpy()
        condition.plot(steps, values, color=colours[index], label=label)
    condition.set_xlabel("step")
    condition.set_ylim(bottom=0)
    if variation.condition is None:
        _tidy(condition, "one condition only")
    else:
        condition.legend(frameon=False, fontsize=8)
        _tidy(condition, f"conditions: {variation.condition:.2f}×")

    timestep.plot(steps, profile.conditions.amax(dim=1).numpy(), color=_BLUE)
    timestep.set_xlabel("step")
    timestep.set_ylim(bottom=0)
    _tidy(timestep, f"timesteps: {variation.timestep:.2f}×")

    for index, colour, label in ((0, _BLUE, "first step"), (-1, _ORANGE, "last step")):
        values = profile.channels[index].numpy()
        channel.plot(values, color=colour, linewidth=0.8, label=label, alpha=0.85)
    channel.set_xlabel("channel")
    channel.set_ylim(bottom=0)
    channel.legend(frameon=False, fontsize=8)
    _tidy(
        channel,
        f"channels: {variation.channel:.1f}×, stable {variation.channel_stability:.2f}",
    )

    token.set_ylabel("largest |input|")
    figure.suptitle(f"{name} ({variation.role})", x=0.01, ha="left")
    return _png(figure)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
