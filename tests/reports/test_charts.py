"""Names and ticks in charts do not overlap."""

import re

import numpy as np
import pytest
from matplotlib.text import Text

from sa_jax.reports import charts
from sa_jax.reports.page import new_figure
from tests.reports.comparisons import ACCURACIES, few, render


def names_at(svg):
    """Where each text of a chart stands."""
    return re.findall(
        r'<text[^>]*?(?:x="([\d.]+)" y="([\d.]+)"|translate\(([\d.]+) ([\d.]+)\))[^>]*>([^<]*)<', svg
    )


def test_names_at_the_ends_of_lines_do_not_overlap():
    rows = few({key: [0.9, 0.9] for key in ACCURACIES})
    svg = re.findall(r"<svg.*?</svg>", render(rows), re.DOTALL)[0]
    # A long name has two lines.
    names = ("Wanda, global", "Score search, then", "annealing", "Magnitude, fine-tuned", "Dense")
    heights = sorted(float(y or v) for _, y, _, v, name in names_at(svg) if name in names)
    assert len(heights) == 5
    assert min(np.diff(heights)) > 8


def test_names_beside_points_cover_neither_names_nor_points():
    figure = new_figure(5.4)
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    spots = rng.normal(0.5, 0.2, (28, 2)).clip(0, 1)
    look = charts.Look("black", 1.0, "-", "o", True)
    points = [charts.Point(f"Wanda, no. {i}", x, y, look) for i, (x, y) in enumerate(spots.tolist())]
    axes.set(xlim=(-0.3, 1.3), ylim=(-0.1, 1.1))
    charts.name_points(axes, points)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the pointers
    pixels = axes.transData.transform(spots)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*pixel) for pixel in pixels)


@pytest.mark.parametrize(
    ("start", "end", "crosses"),
    [((0, 0), (4, 4), True), ((0, 0), (0.5, 4), False), ((0, 0), (0.9, 0.9), False), ((1.5, -1), (1.5, 9), True)],
)
def test_a_line_through_a_box(start, end, crosses):
    assert charts._crosses(start, end, (1, 1, 2, 2)) == crosses


@pytest.mark.parametrize(
    ("limits", "among", "labels"),
    [
        ((0.01, 1.0), (), ["0.01", "0.1", "1", "0.05", "0.5", "0.02", "0.2", "0.03", "0.3", "0.07", "0.7"]),
        ((0.02, 0.5), (0.5, 0.49, 0.05, 0.02), ["0.5", "0.02", "0.05"]),
    ],
)
def test_ticks_lie_apart_with_the_roundest_first(limits, among, labels):
    axis = new_figure(2.0).add_subplot().xaxis
    charts.put_ticks(axis, limits, lambda value: f"{value:g}", among)
    assert [label.get_text() for label in axis.get_ticklabels()] == labels


def test_an_error_is_drawn_above_zero():
    assert [charts.error_of(accuracy) for accuracy in (1.0, 0.75, 0.0)] == [1e-4, 0.25, 1.0]
