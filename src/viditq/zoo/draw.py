"""Draws scenes: batches of images (N, 1, 3, 64, 64) or clips (N, 8, 3, 64, 64) in 0..1.

Shapes are signed distances in units of their radius, negative inside; a pixel's coverage is the
distance in pixels, clamped, which antialiases edges. Everything is elementwise torch, so it runs
on any device; what a caption leaves open (exact place, radius, phase, tint) is random.
"""

import math

import torch
from torch import Tensor

from viditq.zoo.batches import SceneBatch
from viditq.zoo.scenes import ATTRIBUTES

__all__ = ["CANVAS", "FRAMES", "render"]

CANVAS = 64
FRAMES = 8

_COLOUR_RGB = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.93, 0.20),
    "green": (0.15, 0.75, 0.22),
    "cyan": (0.20, 0.85, 0.92),
    "blue": (0.15, 0.32, 0.98),
    "purple": (0.68, 0.25, 0.90),
    "white": (0.97, 0.97, 0.97),
}
# Backgrounds are dim, so that every shape stands out.
_BACKGROUND_RGB = {
    "blue": (0.13, 0.23, 0.52),
    "green": (0.13, 0.40, 0.20),
    "red": (0.52, 0.13, 0.15),
    "purple": (0.36, 0.16, 0.46),
    "grey": (0.46, 0.46, 0.46),
    "brown": (0.42, 0.28, 0.14),
}
_RADIUS = {"small": 11.0, "medium": 15.0, "large": 20.0}
_TRAVEL = 11.0
# A shape that moves straight starts this much of its travel before the middle. Were it symmetric,
# left and right would differ in nothing but direction, and a short training tells them apart late.
_RUN_UP = 0.5
_GROWN, _SHRUNK = 21.0, 8.0


def render(batch: SceneBatch, generator: torch.Generator) -> Tensor:
    """Draw every scene of ``batch``; frames are 8 for video and 1 for images."""
    device = batch.indices.device
    number = len(batch)

    def uniform(low: float, high: float, width: int = 1) -> Tensor:
        unit = torch.rand(number, width, generator=generator, device=device)
        return low + (high - low) * unit

    centre, radius = _trajectory(batch, uniform)  # (N, T, 2), (N, T)
    axis = torch.arange(CANVAS, device=device, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    tint = _rgb(_BACKGROUND_RGB, batch, "background") + uniform(-0.02, 0.02, 3)
    dark = _pattern(batch, x, y, uniform(0, 1, 2))  # (N, H, W)
    ground = tint[:, :, None, None] * (1 - 0.6 * dark)[:, None]

    dx = x - centre[..., 0, None, None]  # (N, T, H, W), pixels
    dy = y - centre[..., 1, None, None]
    size = radius[..., None, None]
    distance = _distance(batch.column("shape"), dx / size, dy / size) * size
    cover = (0.5 - distance).clamp(0, 1)[:, :, None]

    ink = (_rgb(_COLOUR_RGB, batch, "colour") + uniform(-0.02, 0.02, 3)).clamp(0, 1)
    dark = _texture(batch.column("texture"), dx, dy, dy / size, uniform(-0.1, 0.1, 2))
    figure = ink[:, None, :, None, None] * (1 - 0.65 * dark)[:, :, None]
    return (ground[:, None] * (1 - cover) + figure * cover).clamp(0, 1)


def _rgb(palette: dict[str, tuple[float, float, float]], batch: SceneBatch, name: str) -> Tensor:
    names = ATTRIBUTES[batch.kind][name]
    table = torch.tensor([palette[n] for n in names], device=batch.indices.device)
    return table[batch.column(name)]


def _trajectory(batch: SceneBatch, uniform) -> tuple[Tensor, Tensor]:
    """Centres (N, T, 2) and radii (N, T) in pixels."""
    device = batch.indices.device
    sizes = torch.tensor([_RADIUS[n] for n in ATTRIBUTES[batch.kind]["size"]], device=device)
    radius = sizes[batch.column("size")][:, None] * uniform(0.96, 1.04)
    middle = CANVAS / 2 + uniform(-1.5, 1.5, 2)[:, None]  # (N, 1, 2)
    travel = _TRAVEL * uniform(0.92, 1.08)
    if batch.kind == "image":
        sides = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
        way = torch.tensor(
            [sides.get(n, (0, 0)) for n in ATTRIBUTES["image"]["position"]],
            device=device,
            dtype=torch.float32,
        )
        return middle + (way[batch.column("position")] * travel)[:, None], radius

    names = ATTRIBUTES["video"]["motion"]
    motion = batch.column("motion")[:, None]
    time = torch.linspace(-1, 1, FRAMES, device=device)[None]  # (1, T)
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    way = torch.tensor([ways.get(n, (0, 0)) for n in names], device=device, dtype=torch.float32)
    run = _RUN_UP * (time - 1) / 2 + (time + 1) / 2  # from -_RUN_UP to 1
    straight = way[motion[:, 0]][:, None] * (travel * run)[..., None]
    angle = 2 * math.pi * (uniform(0, 1) + torch.arange(FRAMES, device=device)[None] / FRAMES)
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1) * travel[..., None]
    centre = middle + torch.where(motion[..., None] == names.index("orbit"), circle, straight)

    growth = _SHRUNK * (_GROWN / _SHRUNK) ** ((time + 1) / 2) * uniform(0.96, 1.04)
    radius = radius.expand(-1, FRAMES)
    radius = torch.where(motion == names.index("grow"), growth, radius)
    radius = torch.where(motion == names.index("shrink"), growth.flip(1), radius)
    return centre, radius


def _distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of (N, T, H, W) points, in radii, to each scene's shape; y points down."""
    far = torch.sqrt(x * x + y * y + 1e-8)
    ax, ay = x.abs(), y.abs()
    up = y - 0.12

    # a heart is a square on its corner and two circles on its upper sides
    side = 0.56
    hy = y + 0.10
    u, v = (x + hy) / math.sqrt(2), (hy - x) / math.sqrt(2)
    lobe = torch.sqrt(torch.minimum((u + side) ** 2 + v**2, u**2 + (v + side) ** 2) + 1e-8)
    heart = torch.minimum(torch.maximum(u.abs(), v.abs()) - side, lobe - side)

    # a star folds into one half of one of its five points: the edge is then one line
    fold = math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - 2 * fold * torch.round(angle / (2 * fold))).abs()
    tip, notch = 1.12, 0.46
    ex, ey = notch * math.cos(fold) - tip, notch * math.sin(fold)
    star = (ey * (far * angle.cos() - tip) - ex * far * angle.sin()) / math.hypot(ex, ey)

    shapes = {
        "circle": far - 0.95,
        "square": torch.maximum(ax, ay) - 0.82,
        "triangle": torch.maximum(up - 0.58, 0.866 * ax - 0.5 * up - 0.58),
        "star": star,
        "heart": heart,
        "ring": (far - 0.70).abs() - 0.27,
        "cross": torch.minimum(
            torch.maximum(ax - 0.95, ay - 0.31), torch.maximum(ay - 0.95, ax - 0.31)
        ),
        "moon": torch.maximum(far - 0.98, 0.80 - torch.sqrt((x - 0.55) ** 2 + y * y + 1e-8)),
    }
    chosen = torch.zeros_like(far)
    for number, name in enumerate(ATTRIBUTES["image"]["shape"]):
        chosen = torch.where((shape == number)[:, None, None, None], shapes[name], chosen)
    return chosen


def _wave(position: Tensor, period: float) -> Tensor:
    """Antialiased square wave in -1..1 of ``position`` in pixels."""
    triangle = ((position / period) % 1 - 0.5).abs() * period
    return (2 * (triangle - period / 4)).clamp(-1, 1)


def _spots(x: Tensor, y: Tensor, period: float, radius: float) -> Tensor:
    """Antialiased discs, one per square cell, 1 inside."""
    fx = ((x / period) % 1 - 0.5) * period
    fy = ((y / period) % 1 - 0.5) * period
    return (0.5 + radius - torch.sqrt(fx * fx + fy * fy + 1e-8)).clamp(0, 1)


def _pattern(batch: SceneBatch, x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    """How dark (N, H, W), 0..1, the background is at each pixel."""
    px, py = phase[:, 0, None, None], phase[:, 1, None, None]
    patterns = {
        "plain": torch.zeros_like(x)[None],
        "checkerboard": 0.5 + 0.5 * _wave(x + 16 * px, 16) * _wave(y + 16 * py, 16),
        "stripes": 0.5 + 0.5 * _wave(y + 12 * py, 12),
        "gradient": (1.35 * y / CANVAS - 0.1)[None],
        "dots": _spots(x + 11 * px, y + 11 * py, 11, 3.0),
    }
    return _choose(batch.column("pattern"), ATTRIBUTES["image"]["pattern"], patterns)


def _texture(texture: Tensor, x: Tensor, y: Tensor, height: Tensor, phase: Tensor) -> Tensor:
    """How dark (N, T, H, W), 0..1, the shape is at each pixel; x, y from its centre."""
    px, py = phase[:, 0, None, None, None], phase[:, 1, None, None, None]
    textures = {
        "plain": torch.zeros_like(x),
        "striped": 0.5 + 0.5 * _wave(x + 7 * px, 7),
        "dotted": _spots(x + 7 * px, y + 7 * py, 7, 2.0),
        "shaded": (0.5 + 0.6 * height).clamp(0, 1.1),
    }
    return _choose(texture, ATTRIBUTES["image"]["texture"], textures)


def _choose(choice: Tensor, names: tuple[str, ...], options: dict[str, Tensor]) -> Tensor:
    choice = choice.view(-1, *[1] * (options[names[-1]].ndim - 1))
    chosen = options[names[0]]
    for number, name in enumerate(names[1:], start=1):
        chosen = torch.where(choice == number, options[name], chosen)
    return chosen
