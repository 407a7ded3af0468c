"""The report's figures, each one function from values to SVG.

Series are told apart by colour *and* by a label that stands beside them. ``tone`` is the CSS class
of a pipeline's colour (see style.css).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from viditq.diagnostics import LayerDiagnostics
from viditq.report.layers import LayerGrid
from viditq.report.svg import Axis, element, spread, svg, ticks

__all__ = [
    "Series",
    "Standing",
    "activation_spread",
    "interval_bar",
    "layer_errors",
    "psnr_by_seed",
    "standings",
]


@dataclass(frozen=True)
class Series:
    """PSNR of one pipeline, by sample, in dB."""

    name: str
    tone: str
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """One recipe of a contest: PSNR in dB with its interval, and what stands beside it in words."""

    name: str
    tone: str
    mean: float
    interval: tuple[float, float]
    bits: str
    gain: str
    ours: bool = False


def interval_bar(
    value: float, interval: tuple[float, float], tone: str, low: float, high: float
) -> Markup:
    """A dot with its interval on an axis ``low..high``, to stand in a row of the table."""
    width, height = 120, 18
    x = Axis(low, high, 6, width - 6)
    middle = height / 2
    marks = [
        element("line", x1=6, x2=width - 6, y1=middle, y2=middle, class_="rail"),
        element(
            "line", x1=x(interval[0]), x2=x(interval[1]), y1=middle, y2=middle, class_=f"ci {tone}"
        ),
        element("circle", cx=x(value), cy=middle, r=4.5, class_=f"dot {tone}"),
    ]
    return svg(width, height, f"{value:.1f} dB, {interval[0]:.1f} to {interval[1]:.1f}", marks)


def psnr_by_seed(series: Sequence[Series], first_seed: int) -> Markup:
    """PSNR of every sample, one dot each, with the mean and its interval as a line and a band."""
    width, height, left, right, top, bottom = 680, 300, 40, 118, 14, 36
    values = [value for one in series for value in one.values]
    low, high = min(values), max(values)
    margin = max(1.0, 0.05 * (high - low))
    count = max(len(one.values) for one in series)
    x = Axis(-0.5, count - 0.5, left, width - right)
    y = Axis(low - margin, high + margin, height - bottom, top)
    marks = [_level(y, tick, left, width - right, f"{tick:g}") for tick in ticks(y.low, y.high)]
    marks.append(element("text", "dB", x=left - 6, y=top - 3, class_="tick", text_anchor="end"))
    for tick in ticks(0, count - 1, 6):
        if tick == int(tick):
            label = f"{first_seed + int(tick)}"
            marks.append(
                element(
                    "text", label, x=x(tick), y=height - 18, class_="tick", text_anchor="middle"
                )
            )
    marks.append(
        element(
            "text",
            "seed",
            x=(left + width - right) / 2,
            y=height - 3,
            class_="tick",
            text_anchor="middle",
        )
    )
    radius = 3.0 if count <= 40 else 2.2 if count <= 100 else 1.6
    for one in series:
        ends = y(one.interval[0]), y(one.interval[1])
        marks.append(
            element(
                "rect",
                x=left,
                width=width - right - left,
                y=min(ends),
                height=abs(ends[0] - ends[1]),
                class_=f"band {one.tone}",
            )
        )
        marks.append(
            element(
                "line",
                x1=left,
                x2=width - right,
                y1=y(one.mean),
                y2=y(one.mean),
                class_=f"mean {one.tone}",
            )
        )
        for index, value in enumerate(one.values):
            title = element("title", f"{one.name}, seed {first_seed + index}: {value:.1f} dB")
            marks.append(
                element(
                    "circle", title, cx=x(index), cy=y(value), r=radius, class_=f"dot {one.tone}"
                )
            )
    places = spread([y(one.mean) for one in series], 15)
    for one, place in zip(series, places, strict=True):
        marks.append(
            element(
                "text",
                f"{one.name}  {one.mean:.1f}",
                x=width - right + 8,
                y=place + 4,
                class_=f"label {one.tone}",
            )
        )
    return svg(width, height, "PSNR to the float sample of each seed", marks)


def standings(rows: Sequence[Standing], gain_title: str) -> Markup:
    """PSNR to float of each recipe as a dot with its interval, in the order given.

    A pale band carries the interval of viditq's own recipe over all rows.
    """
    left, right, step, top, bottom = 168, 224, 26, 24, 40
    width, height = 860, top + step * len(rows) + bottom
    low = min(row.interval[0] for row in rows)
    high = max(row.interval[1] for row in rows)
    margin = max(0.5, 0.04 * (high - low))
    x = Axis(low - margin, high + margin, left, width - right)
    floor = height - bottom
    marks = [
        element("text", "bits", x=width - right + 52, y=top - 9, class_="tick", text_anchor="end"),
        element("text", gain_title, x=width - right + 70, y=top - 9, class_="tick"),
        element(
            "text",
            "PSNR to float, dB",
            x=(left + width - right) / 2,
            y=height - 4,
            class_="tick",
            text_anchor="middle",
        ),
    ]
    for tick in ticks(x.low, x.high, 8):
        at = x(tick)
        marks.append(element("line", x1=at, x2=at, y1=top, y2=floor, class_="grid"))
        marks.append(
            element("text", f"{tick:g}", x=at, y=floor + 16, class_="tick", text_anchor="middle")
        )
    for row in rows:
        if row.ours:
            start, end = (x(bound) for bound in row.interval)
            marks.append(
                element(
                    "rect",
                    x=start,
                    width=max(end - start, 1.0),
                    y=top,
                    height=floor - top,
                    class_=f"band {row.tone}",
                )
            )
    for place, row in enumerate(rows):
        y = top + step * (place + 0.5)
        weight = "strong " if row.ours else ""
        start, end = (x(bound) for bound in row.interval)
        title = f"{row.name}: {row.mean:.1f} dB, {row.interval[0]:.1f} to {row.interval[1]:.1f}"
        marks += [
            element(
                "text", row.name, x=left - 10, y=y + 4, class_=f"{weight}row", text_anchor="end"
            ),
            element("line", x1=start, x2=end, y1=y, y2=y, class_=f"ci {row.tone}"),
            element(
                "circle",
                element("title", title),
                cx=x(row.mean),
                cy=y,
                r=5,
                class_=f"dot {row.tone}",
            ),
            element(
                "text", row.bits, x=width - right + 52, y=y + 4, class_="row", text_anchor="end"
            ),
            element("text", row.gain, x=width - right + 70, y=y + 4, class_=f"{weight}row"),
        ]
    return svg(width, height, "PSNR to float of each recipe with its 95 % interval", marks)


def layer_errors(grid: LayerGrid, low: float, high: float) -> Markup:
    """Output error of every layer as a grid: the stronger the cell, the lower the SQNR in dB."""
    left, cell = 132, 26 if grid.columns <= 14 else 14
    width = left + grid.columns * cell + 2
    height = len(grid.rows) * 20 + 22
    marks = []
    for row, label in enumerate(grid.rows):
        marks.append(
            element("text", label, x=left - 6, y=row * 20 + 14, class_="tick", text_anchor="end")
        )
    for (row, column), (name, layer) in grid.cells.items():
        share = 0.0 if layer.sqnr_db is None else (high - layer.sqnr_db) / max(high - low, 1e-9)
        strength = 0.06 + 0.94 * min(1.0, max(0.0, share))
        shown = "no error" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"
        title = element("title", f"{name} ({layer.weight_format}): {shown}")
        x, y = left + column * cell, row * 20
        marks.append(
            element(
                "rect",
                title,
                x=x + 1,
                y=y + 1,
                width=cell - 2,
                height=18,
                rx=2,
                class_="heat",
                style=f"fill-opacity:{strength:.2f}",
            )
        )
        if grid.columns <= 14 and layer.sqnr_db is not None:
            marks.append(
                element(
                    "text",
                    f"{layer.sqnr_db:.0f}",
                    x=x + cell / 2,
                    y=y + 14,
                    class_="cell strong" if strength > 0.5 else "cell",
                    text_anchor="middle",
                )
            )
    step = 1 if grid.columns <= 14 else 5
    for column in range(0, grid.columns, step):
        marks.append(
            element(
                "text",
                column,
                x=left + column * cell + cell / 2,
                y=height - 6,
                class_="tick",
                text_anchor="middle",
            )
        )
    marks.append(
        element("text", "block", x=left - 6, y=height - 6, class_="tick", text_anchor="end")
    )
    return svg(width, height, "Signal to quantization noise of every layer in dB", marks)


def activation_spread(layer: LayerDiagnostics, ceiling: float) -> Markup:
    """How far a layer's largest inputs stand above the median, over the steps, log axis.

    For the input before and after balancing: a band from the 99th percentile to the largest value,
    both divided by the median magnitude. ``ceiling`` is the top of the axis.
    """
    width, height, left, right, top, bottom = 320, 190, 34, 60, 10, 32
    steps = [entry.step for entry in layer.steps]
    x = Axis(min(steps), max(steps), left, width - right)
    y = Axis(1, ceiling, height - bottom, top, log=True)
    marks = [
        _level(y, tick, left, width - right, f"{tick:g}×") for tick in ticks(1, ceiling, log=True)
    ]
    ends = []
    for kind in ("before", "after"):
        spreads = [getattr(entry, kind) for entry in layer.steps]
        points = [
            (x(step), y(one.max / max(one.p50, 1e-9)), y(one.p99 / max(one.p50, 1e-9)))
            for step, one in zip(steps, spreads, strict=True)
        ]
        top_line = [f"{px:.1f},{high:.1f}" for px, high, _ in points]
        low_line = [f"{px:.1f},{low:.1f}" for px, _, low in points]
        marks.append(
            element("polygon", points=" ".join(top_line + low_line[::-1]), class_=f"area {kind}")
        )
        marks.append(element("polyline", points=" ".join(top_line), class_=f"curve {kind}"))
        ends.append(points[-1][1])
    for kind, place in zip(("before", "after"), spread(ends, 14), strict=True):
        marks.append(
            element("text", kind, x=width - right + 6, y=place + 4, class_=f"label {kind}")
        )
    for tick in ticks(min(steps), max(steps), 5):
        if tick == int(tick):
            marks.append(
                element(
                    "text",
                    int(tick),
                    x=x(tick),
                    y=height - 16,
                    class_="tick",
                    text_anchor="middle",
                )
            )
    marks.append(
        element(
            "text",
            "step",
            x=(left + width - right) / 2,
            y=height - 2,
            class_="tick",
            text_anchor="middle",
        )
    )
    return svg(width, height, "Largest input over its median, by step", marks)


def _level(y: Axis, value: float, left: float, right: float, label: str) -> Markup:
    line = element("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid")
    text = element("text", label, x=left - 6, y=y(value) + 4, class_="tick", text_anchor="end")
    return line + text
