"""How accurate MLPNet is on MNIST after annealing, beside the strongest rivals: measuring, table, picture."""

import itertools
import statistics
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sa_jax.reports import comparison

from . import runs
from .saved import RESULTS, load_rows, peers

DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
CONFIG_LABELS = {
    "mlpnet_mnist": "score search, then annealing",
    "mlpnet_mnist_long": "the same, longer",
    "mlpnet_mnist_alone": "annealing alone",
    "mlpnet_mnist_nudge": "score search, then annealing of weights too",
}
CONFIGS = list(CONFIG_LABELS)
DRAWN_DENSITIES = (0.1, 0.05, 0.02)
# The strongest rivals of fixed weights; the picture has the first.
RIVALS = ("edge_popup_momentum", "edge_popup_scaled")
# Colours of the bars, and of the numbers in them.
COLORS = (("#0072b2", "white"), ("#e69f00", "black"), ("#9aa3ab", "black"), ("#d5dade", "black"))
# In %: the mean over seeds, and how far the farthest seed is from it. None where nothing was measured.
Cell = tuple[float, float] | None
Row = tuple[str, list[Cell]]


def measure(configs: Iterable[str], densities: Iterable[float], seeds: Iterable[int], jobs: int) -> None:
    """Runs the configs at each density with each seed, and saves accuracy.json."""
    tasks = [runs.Task(*task) for task in itertools.product(configs, densities, seeds)]
    drawn = runs.Task(CONFIGS[0], DENSITIES[-1], runs.SEEDS[0])
    runs.measure("accuracy", CONFIGS, tasks, jobs, drawn)


def table(result: dict[str, Any]) -> str:
    """Means over seeds, how far the farthest seed is from them, and the best in bold.

    Where weights stay and where they move are told apart. The strongest rivals are there too.
    """
    kept = {run["density"]: run["kept"] for run in result["runs"]}
    densities = sorted(kept, reverse=True)
    frozen = [peer("global magnitude", densities), best_of_peers(densities)]
    frozen += [rival(method, densities) for method in reversed(RIVALS)]
    frozen += annealed(result, densities, moves_weights=False)
    moved = [peer("CHITA++", densities, "CHITA++, weights updated"), rival("magnitude_finetuned", densities)]
    moved += annealed(result, densities, moves_weights=True)
    heads = [f"{100 * density:g} %<br>{kept[density]:,}" for density in densities]
    lines = ["| branches kept | " + " | ".join(heads), "|---" * (len(densities) + 1)]
    for title, rows in (("weights never changed", frozen), ("weights moved", moved)):
        lines += [f"| *{title}* " + "| " * len(densities), *lines_of(rows)]
    return " |\n".join(lines) + " |"


def peer(label: str, densities: list[float], name: str = "") -> Row:
    """The row of a method that others measured, by its name in peers.json, where the label does not say it."""
    measured = peers()[name or label]
    return label, [(measured[f"{density:g}"], 0.0) for density in densities]


def best_of_peers(densities: list[float]) -> Row:
    """The row of the best that any method of peers.json reaches which leaves the weights as they are."""
    frozen = [measured for name, measured in peers().items() if "weights updated" not in name]
    best = [max(measured[f"{density:g}"] for measured in frozen) for density in densities]
    return "best of ten other masks", [(accuracy, 0.0) for accuracy in best]


def rival(method: str, densities: list[float]) -> Row:
    """The row of a method of `sa-jax compare`."""
    found = [row for row in load_rows("compare_mlpnet") if row["method"] == method]
    seconds = max(float(row["cpu_seconds"]) for row in found)
    return f"{comparison.display_name(method).lower()}, at most {seconds:,.0f} s", over_seeds(found, densities)


def annealed(result: dict[str, Any], densities: list[float], moves_weights: bool) -> list[Row]:
    """The rows of the configs that move weights, or of those that do not."""
    rows = []
    for config, label in CONFIG_LABELS.items():
        found = [run for run in result["runs"] if run["config"] == config]
        if found and found[0]["moves_weights"] == moves_weights:
            seconds = max(run["cpu_seconds"] for run in found)
            rows.append((f"{label}, at most {seconds:,.0f} s", over_seeds(found, densities)))
    return rows


def parts_table(result: dict[str, Any]) -> str:
    """What each part of the short runs gained: mean accuracies of the masks after it, and its mean seconds."""
    found = [run for run in result["runs"] if run["config"] == CONFIGS[0]]
    densities = sorted({run["density"] for run in found}, reverse=True)
    lines = ["| after | " + " | ".join(f"{100 * density:g} %" for density in densities) + " | CPU s"]
    lines.append("|---" * (len(densities) + 2))
    for number, part in enumerate(found[0]["parts"]):
        cells = []
        for density in densities:
            values = [run["parts"][number]["test_accuracy"] for run in found if run["density"] == density]
            cells.append(f"{100 * statistics.mean(values):.2f}")
        seconds = statistics.mean(run["parts"][number]["cpu_seconds"] for run in found)
        lines.append(f"| {part['part']} | " + " | ".join(cells) + f" | {seconds:.0f}")
    return " |\n".join(lines) + " |"


def over_seeds(found: list[dict[str, Any]], densities: list[float]) -> list[Cell]:
    """A method's cells, from its runs or from its rows of `sa-jax compare`."""
    cells: list[Cell] = []
    for density in densities:
        values = [100 * float(one["test_accuracy"]) for one in found if float(one["density"]) == density]
        mean = statistics.mean(values) if values else 0.0
        cells.append((mean, max(abs(value - mean) for value in values)) if values else None)
    return cells


def lines_of(rows: list[Row]) -> list[str]:
    """Rows as text, the best of each column in bold."""
    columns = zip(*(cells for _, cells in rows), strict=True)
    best = [max(cell[0] for cell in column if cell) for column in columns]
    return [
        f"| {label} | " + " | ".join(text_of(cell, highest) for cell, highest in zip(cells, best, strict=True))
        for label, cells in rows
    ]


def text_of(cell: Cell, highest: float) -> str:
    """A cell as text, in bold if its mean is the highest."""
    if cell is None:
        return ""
    mean, farthest = cell
    mark = "**" if mean == highest else ""
    return f"{mark}{mean:.2f}{mark}" + (f" ±{farthest:.2f}" if farthest else "")


def draw(result: dict[str, Any]) -> None:
    """Draws mlpnet_mnist.png: accuracies, and the pixels that 2 % of the branches still use."""
    found = [run for run in result["runs"] if run["config"] == CONFIGS[0]]
    kept = {run["density"]: run["kept"] for run in found}
    figure = Figure((9.6, 3.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
    draw_bars(left, found, kept)
    draw_pixels(right, kept[DRAWN_DENSITIES[-1]])
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(RESULTS / "mlpnet_mnist.png", metadata={"Software": None})


def draw_bars(axes: Axes, found: list[dict[str, Any]], kept: dict[float, int]) -> None:
    """Draws bars of the mean accuracies by density and method, and a line for the dense network."""
    places = range(len(DRAWN_DENSITIES))
    dense = 100 * found[0]["dense_test_accuracy"]
    for number, ((label, means), (color, ink)) in enumerate(zip(drawn_rows(found), COLORS, strict=True)):
        centers = [place + 0.22 * (number - 1.5) for place in places]
        axes.bar(centers, means, 0.2, color=color, label=label)
        for center, mean in zip(centers, means, strict=True):
            write_number(axes, center, mean, dense, ink)
    axes.axhline(dense, color="#1b232c", linestyle="--", linewidth=1)
    axes.text(len(DRAWN_DENSITIES) - 0.52, dense + 2, f"dense {dense:.1f}", ha="right", fontsize=9)
    labels = [f"{100 * density:g} % kept\n{kept[density]:,} branches" for density in DRAWN_DENSITIES]
    title = "MNIST test accuracy (%), weights never changed"
    axes.set(xticks=places, xticklabels=labels, ylim=(0, 122), yticks=[], title=title)
    axes.tick_params(length=0)
    axes.legend(
        frameon=False, ncols=4, loc="upper center", fontsize=9, handlelength=1, columnspacing=1.5, borderpad=0
    )


def drawn_rows(found: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """The label and the mean accuracies of each kind of bar, at `DRAWN_DENSITIES`."""
    rows = []
    for label, kind in (
        ("score search, then annealing", ""),
        ("global magnitude", "magnitude_"),
        ("random", "random_"),
    ):
        measured = [run | {"test_accuracy": run[f"{kind}test_accuracy"]} for run in found]
        rows.append((label, means_of(measured)))
    of_rival = [row for row in load_rows("compare_mlpnet") if row["method"] == RIVALS[0]]
    rows.insert(1, (comparison.display_name(RIVALS[0]).lower(), means_of(of_rival)))
    return rows


def means_of(found: list[dict[str, Any]]) -> list[float]:
    """The means of `over_seeds` at `DRAWN_DENSITIES`."""
    return [cell[0] for cell in over_seeds(found, list(DRAWN_DENSITIES)) if cell]


def write_number(axes: Axes, center: float, mean: float, dense: float, ink: str) -> None:
    """Writes a bar's height inside the bar, below the line of the dense network, or above a low bar."""
    if mean > 25:
        axes.text(center, min(mean, dense) - 3, f"{mean:.1f}", ha="center", va="top", color=ink, fontsize=8.5)
    else:
        axes.text(center, mean + 1, f"{mean:.1f}", ha="center", va="bottom", fontsize=8.5)


def draw_pixels(axes: Axes, kept: int) -> None:
    """Draws the number of branches that leave each pixel, in the mask of the sparsest run."""
    with np.load(RESULTS / "masks.npz") as arrays:
        first = arrays[arrays.files[0]]
    counts = first.sum(1).reshape(28, 28)
    colors = matplotlib.colormaps["viridis"].with_extremes(under="#eceff2")
    axes.imshow(counts, colors, vmin=0.5, interpolation="nearest")
    title = f"{np.count_nonzero(counts)} of 784 pixels still feed\nthe {kept} annealed branches"
    axes.set(xticks=[], yticks=[], title=title)
