"""The little SVG that the report's figures need: axes, marks, and text that follows the theme.

Marks carry CSS classes and custom properties instead of colours, so that one drawing is right in
light and in dark. This is no plotting library: no legends, no layout engine. Labels are put beside
what they name, and :func:`spread` keeps them from lying on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Axis", "element", "spread", "svg", "ticks"]


@dataclass(frozen=True)
class Axis:
    """Maps values ``low..high`` to positions ``start..end``; ``log`` for a logarithmic axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(x, 1e-12)) for x in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def element(name: str, text: object = None, /, **attributes: object) -> Markup:
    """One element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``.

    Numbers are rounded to a tenth. ``text`` is escaped unless it is Markup.
    """
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.1f}".removesuffix(".0")
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = f"<{name}{''.join(parts)}"
    return Markup(f"{opening}/>" if text is None else f"{opening}>{escape(text)}</{name}>")


def svg(width: float, height: float, label: str, marks: Sequence[Markup]) -> Markup:
    """A drawing of ``width`` × ``height`` units that scales with its place on the page."""
    return element(
        "svg",
        Markup("").join(marks),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        style=f"max-width:{width * 1.25:g}px",
    )


def ticks(low: float, high: float, count: int = 5, log: bool = False) -> list[float]:
    """Round values within ``low..high``, about ``count`` of them (at powers when ``log``)."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in values if low <= value <= high]
            if len(inside) >= 3:
                break
        return inside
    raw = max(high - low, 1e-9) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def spread(positions: Sequence[float], distance: float) -> list[float]:
    """Move positions apart, as little as possible, until neighbours are ``distance`` away."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        groups.append([index])
        centres.append(positions[index])
        while len(groups) > 1:
            reach = (len(groups[-1]) + len(groups[-2])) / 2 * distance
            if centres[-1] - centres[-2] >= reach:
                break
            merged = groups.pop(-2) + groups.pop()
            centres = [*centres[:-2], sum(positions[i] for i in merged) / len(merged)]
            groups.append(merged)
    moved = list(positions)
    for group, centre in zip(groups, centres, strict=True):
        for place, index in enumerate(group):
            moved[index] = centre + (place - (len(group) - 1) / 2) * distance
    return moved
