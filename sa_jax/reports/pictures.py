"""Pictures of masks for the page on a run: pixels, units, whole layers, the network, and masks over time."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sa_jax.networks.masks import effective, flatten, unflatten
from sa_jax.reports.page import (
    ACCENT,
    INK,
    SECOND,
    WIDTH,
    figure_html,
    format_percent,
    legend_above,
    new_figure,
    png_url,
    strip_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, _BLUE = (0.5, 0.5, 0.5, 0.2), (0.10, 0.53, 0.82, 1.0)  # the same in light and dark, as pictures are pixels

_MAX_UNITS, _COLUMNS = 40, 8
_MAX_SIDE = 256  # most cells along a side of a picture of a mask
_MAX_BRANCHES = 1_500  # most branches of a drawn network; more could not be told apart
_STRENGTHS = 4  # number of line widths, for weak to strong branches


def draw_pixels(mask: np.ndarray, image_shape: tuple[int, int]) -> str:
    """Draws the number of hidden units that each pixel still feeds.

    Args:
      mask: mask of the first layer, bool `[inputs, outputs]`.
      image_shape: rows and columns of the image whose pixels are the inputs.
    """
    from matplotlib.ticker import MaxNLocator

    counts = mask.sum(1).reshape(image_shape)
    top = max(1, int(counts.max()))
    figure = new_figure(WIDTH * min(1.5, 0.83 * image_shape[0] / image_shape[1]) + 0.2)
    axes = figure.add_subplot()
    # One band per count if there are few counts. The darkest fifth of the colormap would not show on a dark page.
    colors = bands(top if top <= 12 else 64)
    image = axes.imshow(counts, colors, vmin=0.5, vmax=top + 0.5, interpolation="none")
    bar = figure.colorbar(image, extend="min", ticks=MaxNLocator(6, integer=True), shrink=0.86, pad=0.03)
    bar.set_label("hidden units fed (grey: none)")
    bar.outline.set_visible(False)
    axes.set(xticks=[], yticks=[])
    strip_axes(axes)
    caption = f"{np.count_nonzero(counts):,} of {counts.size:,} pixels still feed the network."
    return figure_html(
        "pixels", figure, f"Picture of the number of hidden units that each pixel feeds. {caption}", caption
    )


def draw_units(mask: np.ndarray, image_shape: tuple[int, int]) -> str:
    """Draws the masks of the hidden units as one picture, units with the most branches first.

    Args:
      mask: mask of the first layer, bool `[inputs, outputs]`.
      image_shape: rows and columns of the image whose pixels are the inputs.
    """
    counts = mask.sum(0)
    order = np.argsort(-counts, kind="stable")[:_MAX_UNITS]
    tiles = [_shrink(mask[:, unit].reshape(image_shape), 64) for unit in order]
    scale = max(1, 32 // tiles[0].shape[1])  # small images need finer cells for the gaps between them
    tiles = [np.kron(tile, np.ones((scale, scale))) for tile in tiles]
    rows, columns = tiles[0].shape
    row_step, column_step = rows + math.ceil(0.42 * columns), columns + math.ceil(0.12 * columns)
    picture = np.zeros((row_step * math.ceil(len(tiles) / _COLUMNS), column_step * _COLUMNS, 4))
    figure = new_figure(WIDTH * picture.shape[0] / picture.shape[1], layout=None)
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
    for i, tile in enumerate(tiles):
        bottom, left = row_step * (i // _COLUMNS + 1), column_step * (i % _COLUMNS)
        picture[bottom - rows : bottom, left : left + columns] = _colored(tile)
        middle, above = left + columns / 2, bottom - rows - 0.06 * columns
        axes.text(middle, above, f"{counts[order[i]]}", ha="center", va="bottom", fontsize=9)
    axes.imshow(picture, interpolation="none", aspect="auto")
    caption = f"{len(order)} of {mask.shape[1]} hidden units, each with its number of kept branches."
    return figure_html("units", figure, caption, caption)


def draw_matrix(share: np.ndarray, name: str, caption: str) -> str:
    """Draws a mask, or the share of masks that keep each branch, one row per input and one column per unit.

    Args:
      share: bool or float `[inputs, outputs]`.
      name: name of the figure, see `figure_html`.
      caption: caption of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    inputs, units = share.shape
    figure = new_figure(WIDTH * min(1.0, max(0.3, inputs / units)))
    axes = figure.add_subplot()
    extent = (0.5, units + 0.5, inputs + 0.5, 0.5)
    axes.imshow(_colored(_shrink(share, _MAX_SIDE)), interpolation="none", aspect="auto", extent=extent)
    axes.set(xlabel="unit of the first layer", ylabel="input")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    strip_axes(axes)
    return figure_html(name, figure, f"Picture of inputs against units. {caption}", caption)


def bands(count: int) -> Any:
    """Returns a colormap of `count` bands, grey below the first."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.2, 1, count)))
    return colors.with_extremes(under=GREY)


def _colored(share: np.ndarray) -> np.ndarray:
    """Returns the kept share of each cell as RGBA colors, from grey to blue."""
    share = np.asarray(share, float)[..., None]
    return (1 - share) * np.array(GREY) + share * np.array(_BLUE)


def _shrink(mask: np.ndarray, side: int) -> np.ndarray:
    """Averages blocks of cells if the mask has more than `side` rows or columns."""
    share = mask.astype(float)
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, share.shape[axis], side, endpoint=False).astype(int))
        widths = np.diff(starts, append=share.shape[axis])
        share = np.add.reduceat(share, starts, axis) / np.expand_dims(widths, 1 - axis)
    return share


def draw_network(
    masks: Mapping[str, np.ndarray], weights: Sequence[np.ndarray], image_shape: tuple[int, int] | None
) -> str:
    """Draws the units as dots and the live branches as lines, or says that there are too many.

    A branch is live if it lies on a path from an input to an output. Inputs that are pixels are placed as in the
    image. Only units in use are drawn, ordered by the mean height of their inputs so that fewer lines cross;
    outputs are all drawn, in their own order.

    Args:
      masks: one bool `[inputs, outputs]` per layer, in network order.
      weights: one float `[inputs, outputs]` per layer.
      image_shape: rows and columns if the inputs are the pixels of an image, else None.
    """
    kernels = _live(list(masks.values()))
    live = sum(int(kernel.sum()) for kernel in kernels)
    if live > _MAX_BRANCHES:
        return (
            f'<p class="soft">The network is drawn only if at most {_MAX_BRANCHES:,} branches lie on a path from '
            f"input to output; here {live:,} do.</p>"
        )
    if not live:
        return '<p class="soft">The network is not drawn: no branch lies on a path from input to output.</p>'
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    places = _places(kernels, image_shape)
    for kernel, values, before, after in zip(kernels, weights, places, places[1:], strict=False):
        _draw_branches(axes, kernel, values, before, after)
    if image_shape is not None:
        axes.scatter(*places[0].T, s=min(5, 600 / len(places[0])), color=INK, alpha=0.3, linewidths=0)
    for place, used in zip(places, _used(kernels), strict=True):
        size = min(12, 600 / max(1, np.count_nonzero(used)))
        axes.scatter(*place[used].T, s=size, color=INK, zorder=3, linewidths=0)
    for number, (x, y) in enumerate(places[-1]):
        if len(places[-1]) <= 20:
            axes.annotate(f"{number}", (x, y), (5, 0), textcoords="offset points", va="center", fontsize=7)
    for color, label in ((ACCENT, "positive weight"), (SECOND, "negative weight")):
        axes.plot([], [], color=color, label=label)
    legend_above(axes)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.03)
    strip_axes(axes)
    counts = ", ".join(f"{np.count_nonzero(used):,} of {used.size:,}" for used in _used(kernels))
    caption = (
        f"The {live:,} branches that lie on a path from input to output, drawn from left to right. Thicker lines "
        f"are larger weights. Units in use, from the inputs to the outputs: {counts}."
    )
    return figure_html("network", figure, f"Drawing of the network. {caption}", caption)


def _live(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    shapes = [(mask.shape[0], mask.shape[1]) for mask in masks]
    live = effective(flatten([jnp.asarray(mask, bool) for mask in masks]), shapes)
    return [np.array(kernel, bool) for kernel in unflatten(live, shapes)]


def _used(kernels: Sequence[np.ndarray]) -> list[Any]:
    """Returns which inputs, and which units of each layer, have live branches."""
    return [kernels[0].any(1), *(kernel.any(0) for kernel in kernels)]


def _places(kernels: Sequence[np.ndarray], image_shape: tuple[int, int] | None) -> list[np.ndarray]:
    """Returns the places of the inputs and of each layer's units, `[units, 2]` each; y goes up, from 0 to 1."""
    used = _used(kernels)
    if image_shape is None:
        places = [_column(0.0, used[0], np.arange(len(used[0])))]
    else:
        rows, columns = np.unravel_index(np.arange(len(used[0])), image_shape)
        side = max(*image_shape, 2) - 1
        heights = 0.5 + ((image_shape[0] - 1) / 2 - rows) / side
        places = [np.stack([(columns - image_shape[1] + 1) / side, heights], 1)]
    for layer, kernel in enumerate(kernels, 1):
        mean_height = (kernel * places[-1][:, 1:]).sum(0) / np.maximum(kernel.sum(0), 1)
        last = layer == len(kernels)
        ranks = np.arange(kernel.shape[1]) if last else -mean_height
        places.append(_column(0.55 * layer, np.ones_like(used[layer]) if last else used[layer], ranks))
    return places


def _column(x: float, drawn: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Spreads the drawn units of a layer over a column, the lowest rank at the top."""
    place = np.full((len(drawn), 2), (x, 0.5))
    order = np.argsort(np.where(drawn, ranks, np.inf), kind="stable")[: np.count_nonzero(drawn)]
    place[order, 1] = 1 - (np.arange(len(order)) + 0.5) / len(order)
    return place


def _draw_branches(
    axes: "Axes", kernel: np.ndarray, weights: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Draws a layer's branches, one path per sign and strength, so that many lines take few bytes."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    size = np.abs(np.where(kernel, weights, 0))
    strength = np.ceil(_STRENGTHS * size / max(size.max(), 1e-30)).clip(1)
    for level in range(1, _STRENGTHS + 1):
        for color, sign in ((ACCENT, weights >= 0), (SECOND, weights < 0)):
            starts, ends = np.nonzero(kernel & sign & (strength == level))
            if not starts.size:
                continue
            vertices = np.stack([before[starts], after[ends]], 1).reshape(-1, 2)
            path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(starts)))
            share = level / _STRENGTHS
            style = {"edgecolor": color, "linewidth": 0.2 + share, "alpha": 0.35 + 0.5 * share}
            axes.add_patch(PathPatch(path, facecolor="none", zorder=1 + share, **style))
    axes.autoscale_view()


def draw_evolution(
    evolution: Mapping[str, np.ndarray],
    trace: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    image_shape: tuple[int, int] | None,
) -> str:
    """Draws the first layer at several times of a run, one picture at a time, and how near all layers came.

    Args:
      evolution: `step` `[times]` and `masks`, flat, bool `[times, total]`, of the best chain.
      trace: see `render_report`.
      masks: the best mask of that chain, one bool `[inputs, outputs]` per layer, in network order.
      image_shape: rows and columns if the inputs are the pixels of an image, else None.
    """
    steps, taken = evolution["step"].tolist(), evolution["masks"]
    if len(steps) < 3:
        return ""
    first = next(iter(masks.values()))
    firsts = taken[:, : first.size].reshape(len(steps), *first.shape)
    pictures = _matrices(firsts) if image_shape is None else _pixel_maps(firsts, image_shape)
    cooled = dict(zip(trace["step"].tolist(), trace["temperature"].tolist(), strict=True))
    best = np.concatenate([np.ravel(mask) for mask in masks.values()])
    frames = []
    for i, (step, mask, picture) in enumerate(zip(steps, taken, pictures, strict=True)):
        state = f"temperature {cooled[step]:.2g}" if step in cooled else "the initial mask"
        common = np.count_nonzero(mask & best) / max(1, np.count_nonzero(mask))
        seen = np.count_nonzero(firsts[i].any(1))
        caption = (
            f"Step {step:,}, {state}: {format_percent(common)} of its branches are also in the best mask; "
            f"{seen:,} of {len(first):,} {'inputs' if image_shape is None else 'pixels'} feed the network."
        )
        name = f"{cooled[step]:.1g}" if step in cooled else "start"
        spoken = f"Step {step:,}, temperature " if step in cooled else f"Step {step:,}, "
        caption = html.escape(caption)
        shape = "matrix" if image_shape is None else "pixels"
        frames.append(
            f'<input type="radio" name="evolution" id="evolution-{i}" aria-describedby="evolution-{i}-caption"'
            f"{' checked' if i == 0 else ''}>"
            f'<label for="evolution-{i}"><span class="unseen">{spoken}</span>{name}</label>'
            f'<figure><img class="{shape}" src="{picture}" alt="Picture of the first layer. {caption}">'
            f'<figcaption id="evolution-{i}-caption">{caption}</figcaption></figure>'
        )
    return f"""<section><h2>How the mask evolved</h2><div class="columns"><div>
<p id="evolution-named">The first layer while the temperature falls. Choose a temperature, also with the arrow
keys:</p>
<div class="slider" role="radiogroup" aria-labelledby="evolution-named"
  style="grid-template-columns: repeat({len(steps)}, minmax(0, 1fr))">{"".join(frames)}</div>
{_key(firsts) if image_shape is not None else ""}</div>{_settled(steps, taken, masks)}</div></section>"""


def _pixel_maps(firsts: np.ndarray, image_shape: tuple[int, int]) -> list[str]:
    """Returns pictures of the number of units that each pixel feeds, all in the same colors."""
    counts = firsts.sum(2)
    top = max(1, int(counts.max()))
    colors = bands(64)
    shares = np.where(counts > 0, (counts - 1) / max(1, top - 1), -1.0)
    return [png_url(colors(share.reshape(image_shape))) for share in shares]


def _matrices(firsts: np.ndarray) -> list[str]:
    return [png_url(_colored(_shrink(mask, _MAX_SIDE))) for mask in firsts]


def _key(firsts: np.ndarray) -> str:
    """Returns the legend of the colors of `_pixel_maps`."""
    top = max(1, int(firsts.sum(2).max()))
    bar = png_url(bands(64)(np.linspace(0, 1, 64))[None])
    return (
        f'<p class="key"><span>1</span><img src="{bar}" alt="to"><span>{top:,}</span>'
        "<span>hidden units fed (grey: none)</span></p>"
    )


def _settled(steps: Sequence[int], taken: np.ndarray, masks: Mapping[str, np.ndarray]) -> str:
    """Draws the share of the best mask that each layer had found, against the step."""
    from matplotlib.ticker import EngFormatter

    figure = new_figure(3.4)
    axes = figure.add_subplot()
    start = 0
    for i, (name, mask) in enumerate(masks.items()):
        part, best = taken[:, start : start + mask.size], np.ravel(mask)
        start += mask.size
        shares = 100 * (part & best).sum(1) / np.maximum(1, best.sum())
        color, line = (ACCENT, SECOND, INK)[i % 3], ("-", "--", ":")[i // 3 % 3]
        axes.plot(steps, shares, line, color=color, marker="o", markersize=3.5, label=name)
    axes.set(xlabel="step", ylabel="% of the best mask's branches", ylim=(0, 104))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    if len(masks) <= 9:
        legend_above(axes)
    strip_axes(axes)
    caption = "Share of the best mask's branches that the same chain already kept, by layer."
    return figure_html("settled", figure, f"Lines over the steps. {caption}", caption)
