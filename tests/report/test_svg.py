"""Axes, ticks and labels: the arithmetic of the figures."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from viditq.report.svg import Axis, element, spread, ticks

finite = st.floats(-1e4, 1e4)


def test_axis():
    axis = Axis(10, 20, 0, 100)
    assert [axis(value) for value in (10, 15, 20)] == [0, 50, 100]
    log = Axis(1, 100, 100, 0, log=True)
    assert log(10) == pytest.approx(50)
    assert Axis(5, 5, 0, 100)(5) == 50


@given(finite, st.floats(1e-3, 1e4))
def test_ticks_lie_inside_at_round_distances(low, width):
    values = ticks(low, low + width)
    assert 1 <= len(values) <= 7
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in values)


@given(st.floats(1e-3, 1e3), st.floats(3, 1e4))
def test_log_ticks_lie_inside(low, factor):
    values = ticks(low, low * factor, log=True)
    assert all(low <= value <= low * factor for value in values)
    assert len(values) >= 1


@given(st.lists(finite, max_size=8), st.floats(1, 50))
def test_spread_keeps_order_and_distance(positions, distance):
    moved = spread(positions, distance)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [moved[index] for index in order]
    gaps = [second - first for first, second in pairwise(placed)]
    assert all(gap >= distance - 1e-6 for gap in gaps)
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6 * (1 + distance) * 1e4)


def test_labels_far_apart_stay():
    assert spread([10, 100, 50], 15) == [10, 100, 50]


def test_text_is_escaped_and_attributes_are_named():
    drawn = element("text", "a < b", x=1.04, class_="tick", text_anchor="end", y=None)
    assert drawn == '<text x="1" class="tick" text-anchor="end">a &lt; b</text>'
    assert element("g", Markup("<b/>")) == "<g><b/></g>"
    assert element("line", x1=2) == '<line x1="2"/>'
