"""Parts of the charts of a comparison: axes on log scales, and names that do not overlap."""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sa_jax.reports.page import INK, strip_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIN_ERROR = 1e-4  # where an error of zero is drawn on a log scale
_LABEL = 8  # font size of the names in charts, in points
_LINE = 1.25 * _LABEL  # height of a line of a name
_WIDEST = 24  # most letters in a line of a name


class Look(NamedTuple):
    """How a method is drawn; `named` says whether charts of lines show its name."""

    color: str
    alpha: float
    line: str
    marker: str
    named: bool


class Point(NamedTuple):
    """A point and its name."""

    name: str
    x: float
    y: float
    look: Look


def error_of(accuracy: float) -> float:
    """Returns the error to draw for an accuracy, above 0."""
    return min(max(1 - accuracy, _MIN_ERROR), 1.0)


def draw_line(axes: "Axes", x: Sequence[float], y: Sequence[float], look: Look) -> None:
    """Draws a line with its markers."""
    size, width = (4, 1.6) if look.named else (2.5, 0.9)
    style = {"color": look.color, "alpha": look.alpha, "linestyle": look.line, "linewidth": width}
    axes.plot(x, y, marker=look.marker, markersize=size, markeredgewidth=0, zorder=2 + look.named, **style)


def finish(axes: "Axes") -> None:
    """Gives axes a faint grid and no frame."""
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    strip_axes(axes)


def density_axis(axes: "Axes", densities: Sequence[float]) -> None:
    """Scales densities by their logarithm, lower ones to the right, so that 90 and 98 % pruned lie well apart."""
    axes.set_xscale("log")
    least, most = min(densities), max(densities)
    axes.set_xlim(most * 1.06, least / 1.06)
    axes.set_xlabel("pruned, %")
    put_ticks(axes.xaxis, (least, most), lambda density: f"{100 * (1 - density):.6g}", densities, 0.09)
    finish(axes)


def log_scale(axes: "Axes", side: str, margin: float = 0.05) -> tuple[float, float]:
    """Gives an axis a log scale with room around the drawn values, even if there is only one."""
    low, high = getattr(axes.dataLim, f"interval{side}")
    room = max((high / low) ** margin, 1.1)
    axes.set(**{f"{side}lim": (low / room, high * room), f"{side}scale": "log"})
    return low / room, high * room


def error_axis(axes: "Axes") -> None:
    """Scales errors by their logarithm and labels them by the accuracy, better ones higher up."""
    low, high = log_scale(axes, "y", 0.06)
    high = min(high, 1.0)
    axes.set_ylim(high, low)  # better is higher
    put_ticks(axes.yaxis, (low, high), lambda error: f"{100 * (1 - error):.6g}")
    finish(axes)


def put_ticks(
    axis: Any,
    limits: Sequence[float],
    text: Callable[[float], str],
    among: Sequence[float] = (),
    apart: float = 0.07,
    floor: float | None = None,
) -> None:
    """Puts ticks at round values of a log scale, or at some of given values, so that they do not overlap.

    Args:
      axis: the axis.
      limits: its ends.
      text: returns the label of a value.
      among: values for the ticks; round values if empty.
      apart: smallest distance between two ticks, as a share of the axis.
      floor: value whose tick is labelled 'none'; None if there is none.
    """
    from matplotlib.ticker import NullLocator

    low, high = min(limits), max(limits)
    span = max(math.log(high / low), 1e-9)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # Earlier values take the room first: the ends of the given ones, or the roundest ones.
    wanted = [among[0], among[-1], *among] if among else []
    wanted = wanted or [part * 10.0**decade for part in (1, 5, 2, 3, 7, 1.5, 4, 6, 8, 9) for decade in decades]
    chosen = [] if floor is None else [floor]
    for value in wanted:
        inside = low * 0.999 <= value <= high * 1.001
        if inside and all(abs(math.log(value / other)) > apart * span for other in chosen):
            chosen.append(value)
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(chosen, ["none" if value == floor else text(value) for value in chosen])


def name_ends(axes: "Axes", ends: Sequence[Point]) -> None:
    """Writes names to the right of the lines' ends, moved apart where they would overlap."""
    settled = _settle(axes)
    to_axes = axes.transData + axes.transAxes.inverted()
    own = {point: to_axes.transform((point.x, point.y))[1] for point in ends}
    ordered = sorted(own, key=lambda point: -own[point])
    # Half of the height of each name, with the space around it.
    halves = [(_LINE * len(_lines(point.name)) + 0.5) / 2 / settled.height for point in ordered]
    heights, ceiling = [], 1.04
    for point, half in zip(ordered, halves, strict=True):
        heights.append(min(own[point], ceiling - half))
        ceiling = heights[-1] - half
    floor = -halves[-1]
    for i in reversed(range(len(heights))):
        heights[i] = max(heights[i], floor + halves[i])
        floor = heights[i] + halves[i]
    for point, height in zip(ordered, heights, strict=True):
        place = {"xy": (point.x, point.y), "xytext": (1.05, height), "textcoords": "axes fraction"}
        _annotate(axes, point, "left", True, **place)


def name_points(axes: "Axes", points: Sequence[Point]) -> None:
    """Writes each point's name as near as possible without covering another name or point."""
    frame = _settle(axes)
    spots = [tuple(axes.transData.transform((p.x, p.y)) * frame.scale) for p in points]
    taken = [(x - 2, y - 2, x + 2, y + 2) for x, y in spots]
    for i in sorted(range(len(points)), key=lambda i: not points[i].look.named):
        others = taken[:i] + taken[i + 1 :]
        lines = _lines(points[i].name)
        places = _places(spots[i], 0.6 * _LABEL * max(map(len, lines)), _LINE * len(lines))
        place = min(places, key=lambda place: _cost(place, spots[i], others, frame))
        taken.append(place.box)
        where = {"xy": (points[i].x, points[i].y), "xytext": place.shift, "textcoords": "offset points"}
        # There is room beside the chart already, so the layout does not have to make any.
        _annotate(axes, points[i], place.align, place.distance > 9, **where).set_in_layout(False)


class _Frame(NamedTuple):
    """The box of the axes, in points."""

    left: float
    bottom: float
    right: float
    top: float
    scale: float

    @property
    def height(self) -> float:
        return self.top - self.bottom


def _settle(axes: "Axes") -> _Frame:
    figure: Any = axes.figure
    figure.draw_without_rendering()  # settles the layout
    scale = 72 / figure.dpi
    box = axes.get_window_extent()
    return _Frame(box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale, scale)


class _Place(NamedTuple):
    """A place for a name: its distance and shift from its point, and the box that it fills, in points."""

    distance: float
    shift: tuple[float, float]
    align: str
    box: tuple[float, float, float, float]


def _lines(name: str) -> list[str]:
    return textwrap.wrap(name, _WIDEST)


def _places(spot: Sequence[float], width: float, height: float) -> Iterator[_Place]:
    for distance, angle in itertools.product((5, 9, 14, 20, 27, 35, 44, 54, 66, 80, 100, 125), range(0, 360, 15)):
        dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
        align = "left" if dx > 1 else "right" if dx < -1 else "center"
        left = spot[0] + dx - {"left": 0, "right": width, "center": width / 2}[align]
        bottom = spot[1] + dy - height / 2
        yield _Place(distance, (dx, dy), align, (left, bottom, left + width, bottom + height))


def _cost(
    place: _Place, spot: Sequence[float], others: Sequence[Sequence[float]], frame: _Frame
) -> tuple[bool, float, int, float]:
    """What a place would cost: first of all text outside, then covered names, then names under the pointer."""
    left, bottom, right, top = place.box
    outside = left < frame.left - 4 or bottom < frame.bottom or right > frame.right + 4 or top > frame.top
    shared = sum(
        max(min(right, other[2]) - max(left, other[0]), 0) * max(min(top, other[3]) - max(bottom, other[1]), 0)
        for other in others
    )
    end = spot[0] + place.shift[0], spot[1] + place.shift[1]
    crossed = sum(_crosses(spot, end, other) for other in others) if place.distance > 9 else 0
    return outside, shared, crossed, place.distance


def _crosses(start: Sequence[float], end: Sequence[float], box: Sequence[float]) -> bool:
    """Returns whether a straight line runs through a box."""
    first, last = 0.0, 1.0
    for axis in (0, 1):
        way = end[axis] - start[axis]
        low, high = sorted((edge - start[axis]) / (way or 1e-9) for edge in (box[axis], box[axis + 2]))
        first, last = max(first, low), min(last, high)
    return first < last


def _annotate(axes: "Axes", point: Point, align: str, pointed: bool, **where: Any) -> Any:
    """Writes the name of a point; if `pointed`, with a thin line from the text's nearer edge to the point."""
    color, alpha = point.look.color, max(point.look.alpha, 0.65)
    side = {"left": 0, "right": 1, "center": 0.5}[align]
    pointer = {"arrowstyle": "-", "color": color, "alpha": 0.45, "linewidth": 0.6, "relpos": (side, 0.5)}
    pointer |= {"shrinkA": 0, "shrinkB": 2}
    style = {"color": color, "alpha": alpha, "fontsize": _LABEL, "ha": align, "va": "center"}
    return axes.annotate("\n".join(_lines(point.name)), arrowprops=pointer if pointed else None, **style, **where)
