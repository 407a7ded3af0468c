"""Scenes are drawn as their captions say."""

import pytest
import torch

from viditq.zoo.batches import SceneBatch
from viditq.zoo.draw import CANVAS, FRAMES, render
from viditq.zoo.scenes import ATTRIBUTES, Scene


def draw(*scenes):
    return render(SceneBatch.of(scenes), torch.Generator().manual_seed(0))


def white(place, **changes):
    """A white shape, plain and large, over plain blue."""
    choice = {"shape": "circle", "size": "medium", "texture": "plain", "pattern": "plain"} | changes
    return Scene(colour="white", background="blue", **choice, **place)


def centre_and_area(frames):
    """Centroids (T, 2) as (x, y) and areas (T,) of the bright pixels of frames (T, 3, H, W)."""
    bright = (frames.amin(dim=1) > 0.7).float()
    axis = torch.arange(CANVAS) + 0.5
    area = bright.sum((1, 2))
    x, y = (bright * axis).sum((1, 2)) / area, (bright * axis[:, None]).sum((1, 2)) / area
    return torch.stack([x, y], dim=1), area


def test_shapes_and_range():
    image = draw(white({"position": "left"}))
    clip = draw(white({"motion": "left"}))
    assert image.shape == (1, 1, 3, CANVAS, CANVAS)
    assert clip.shape == (1, FRAMES, 3, CANVAS, CANVAS)
    assert float(clip.min()) >= 0 and float(clip.max()) <= 1
    assert torch.equal(clip, draw(white({"motion": "left"})))


@pytest.mark.parametrize(
    ("motion", "x", "y"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)]
)
def test_motions(motion, x, y):
    centre, _ = centre_and_area(draw(white({"motion": motion}))[0])
    moved = (centre[-1] - centre[0]) / 20
    assert moved.round().tolist() == [x, y]


def test_growing_shrinking_orbiting_standing():
    growing, shrinking, orbiting, still = draw(
        *[white({"motion": m}) for m in ("grow", "shrink", "orbit", "still")]
    )
    assert bool((centre_and_area(growing)[1].diff() > 0).all())
    assert bool((centre_and_area(shrinking)[1].diff() < 0).all())
    centre, _ = centre_and_area(orbiting)
    assert float((centre - centre.mean(0)).norm(dim=1).min()) > 8
    assert bool((still == still[:1]).all())


def test_sizes_and_shapes_differ():
    sizes = draw(*[white({"position": "centre"}, size=s) for s in ATTRIBUTES["image"]["size"]])
    areas = centre_and_area(sizes[:, 0])[1]
    assert areas[0] < 0.7 * areas[1] < 0.7 * 0.7 * areas[2]
    shapes = draw(*[white({"position": "centre"}, shape=s) for s in ATTRIBUTES["image"]["shape"]])
    shapes = (shapes[:, 0].amin(dim=1) > 0.7).float().flatten(1)
    different = torch.cdist(shapes, shapes, p=1) + 1000 * torch.eye(len(shapes))
    assert different.min() > 80
