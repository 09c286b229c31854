"""Tables and pictures of the paper's experiment, from what scripts/reproduce_paper.sh has measured.

    python scripts/paper.py runs/paper --out=scripts/results

Kuo, Kuruoglu & Chan, Neural Network Structure Optimization by Simulated Annealing, Entropy 24(3):348, 2022.
"""

import argparse
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from sa_jax.commands.compare.settings import Cell
from sa_jax.files.npz import read_npz

# Accuracy that may be lost against the dense network and still counts as kept.
TOLERANCE = 0.01
LABELS = {
    "anneal": "annealed, from the largest weights",
    "anneal_random_start": "annealed, from a random mask",
    "magnitude_global": "largest weights",
    "random": "random",
}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
Row = dict[str, Any]


def main() -> None:
    """Reads the comparisons in a workdir and writes paper.md, two tables as CSV and three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    main_folder, schedules_folder = (arguments.workdir / name for name in ("main", "schedules"))
    rows, schedules = (read(folder / "results.csv") for folder in (main_folder, schedules_folder))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, folder in (("paper.csv", main_folder), ("paper_schedules.csv", schedules_folder)):
        (arguments.out / name).write_text((folder / "results.csv").read_text())
    draw_accuracies(rows, arguments.out / "paper_accuracy.png")
    draw_courses(rows, main_folder, arguments.out / "paper_courses.png")
    draw_schedules(schedules, schedules_folder, arguments.out / "paper_schedules.png")
    (arguments.out / "paper.md").write_text(page(rows, schedules, schedules_folder))


def read(path: Path) -> list[Row]:
    """The rows of a results.csv, numbers as numbers."""
    with path.open() as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        for name in ("density", "test_accuracy", "validation_accuracy", "test_loss", "cpu_seconds"):
            row[name] = float(row[name])
    return rows


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of each data set, network and kind of weights."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["network"], row["weights"]), []).append(row)
    return found


def of(rows: Sequence[Row], method: str) -> list[Row]:
    """A method's rows, densest first; of the first seed."""
    seed = next(row["seed"] for row in rows)
    chosen = [row for row in rows if row["method"] == method and row["seed"] == seed]
    return sorted(chosen, key=lambda row: -row["density"])


def page(rows: list[Row], schedules: list[Row], schedules_folder: Path) -> str:
    """The tables, and for each network what the experiment says of the claim."""
    lines = [
        "# The paper's experiment",
        "",
        "Annealing alone, no derivative, against the dense network: test accuracy in per cent and, in brackets,",
        "loss (mean cross-entropy in nats), by the percentage of branches pruned. One seed.",
        "`scripts/reproduce_paper.sh` measured it with `configs/paper.gin` and `configs/paper_schedules.gin`.",
        "",
        "![Test accuracy against the percentage pruned](paper_accuracy.png)",
    ]
    for (dataset, network, weights), group in groups(rows).items():
        densities = sorted({row["density"] for row in group if row["method"] != "dense"}, reverse=True)
        (dense,) = of(group, "dense")
        lines += ["", f"## {network}, {dataset}, {'trained' if weights == 'pretrain' else weights} weights", ""]
        lines += [f"Dense: {100 * dense['test_accuracy']:.2f} ({dense['test_loss']:.3f}). {claim(group)}", ""]
        lines += ["| pruned | " + " | ".join(f"{100 * (1 - d):g} %" for d in densities) + " | CPU s |"]
        lines += ["|---" * (len(densities) + 2) + "|"]
        for method, label in LABELS.items():
            cells = of(group, method)
            if cells:
                texts = [f"{100 * row['test_accuracy']:.2f} ({row['test_loss']:.2f})" for row in cells]
                seconds = sum(row["cpu_seconds"] for row in cells) / len(cells)
                lines += [f"| {label} | {' | '.join(texts)} | {seconds:.0f} |"]
    lines += ["", "## Energy and acceptance over the schedule", "", "![Courses](paper_courses.png)"]
    lines += ["", "## Cooling rates and start temperatures", ""]
    lines += ["Lowest energy, and test accuracy in per cent, with trained weights on MNIST, from a random mask."]
    lines += ["The temperature falls geometrically from 1e-5 (cold), 1e-4 (middle) or 1e-3 (hot) to 1e-6;"]
    lines += ["greedy descent has none.", ""]
    densities = sorted({row["density"] for row in schedules if row["method"] != "dense"}, reverse=True)
    names = list(dict.fromkeys(row["method"] for row in schedules if row["method"] != "dense"))
    lines += ["| schedule | proposals | " + " | ".join(f"{100 * (1 - d):g} % pruned" for d in densities) + " |"]
    lines += ["|---" * (len(densities) + 2) + "|"]
    for name in names:
        cells = of(schedules, name)
        texts = [
            f"{trace(schedules_folder, row)['trace_best_energy'].min():.4f}, {100 * row['test_accuracy']:.2f}"
            for row in cells
        ]
        lines += [f"| {name.replace('_', ', ')} | {int(cells[0]['num_evaluations']):,} | {' | '.join(texts)} |"]
    lines += ["", "![Lowest energy against proposals](paper_schedules.png)", ""]
    return "\n".join(lines)


def claim(group: list[Row]) -> str:
    """How far annealing keeps the dense network's accuracy, in one sentence."""
    (dense,) = of(group, "dense")
    if dense["weights"] == "random":
        return "Its weights were never trained: all that the masks know they know by annealing."
    least = dense["validation_accuracy"] - TOLERANCE
    best = of(group, "anneal") or of(group, "anneal_random_start")
    kept = list(itertools.takewhile(lambda row: row["validation_accuracy"] >= least, best))
    within = f"within {100 * TOLERANCE:g} point of it on validation images"
    if not kept:
        return f"At no percentage here does annealing stay {within}."
    return f"Annealing stays {within} with up to {100 * (1 - kept[-1]['density']):g} % pruned."


def trace(folder: Path, row: Row) -> dict[str, Any]:
    """What was recorded of a cell's annealing."""
    hidden = tuple(map(int, row["network"].split("-")[1:-1]))
    place = row["dataset"], row["weights"], hidden, row["method"], row["density"], int(row["seed"])
    return read_npz(folder / "cells" / f"{Cell(*place).name}.npz")


def draw_accuracies(rows: list[Row], path: Path) -> None:
    """One panel per data set and kind of weights, a colour per network."""
    found = groups(rows)
    datasets, kinds = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 2))
    networks = list(dict.fromkeys(key[1] for key in found))
    figure, panels = plt.subplots(
        len(datasets),
        len(kinds),
        figsize=(5 * len(kinds), 3.6 * len(datasets)),
        squeeze=False,
        layout="constrained",
    )
    for (dataset, network, weights), group in found.items():
        axes = panels[datasets.index(dataset), kinds.index(weights)]
        color = COLORS[networks.index(network)]
        for method, style in (("anneal", "-o"), ("anneal_random_start", "--o"), ("magnitude_global", ":")):
            cells = of(group, method)
            places, heights = [row["density"] for row in cells], [100 * row["test_accuracy"] for row in cells]
            axes.plot(places, heights, style, color=color, ms=3, lw=1.3)
        if weights != "random":
            axes.axhline(100 * of(group, "dense")[0]["test_accuracy"], color=color, lw=0.7, alpha=0.6)
        kind = "trained" if weights == "pretrain" else weights
        axes.set_title(f"{dataset}, {kind} weights", loc="left", fontsize=10)
    densities = sorted({row["density"] for row in rows if row["method"] != "dense"})
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(densities, [f"{100 * (1 - d):g}" for d in densities])
        axes.minorticks_off()
        axes.grid(alpha=0.2)
        axes.set(xlabel="branches pruned, %", ylabel="test accuracy, %", ylim=(None, 101))
        axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=COLORS[i]) for i in range(len(networks))]
    styles = [Line2D([], [], color="0.3", ls=style) for style in ("-", "--", ":")]
    styles += [Line2D([], [], color="0.3", lw=0.7, alpha=0.6)]
    names = [*networks, LABELS["anneal"], LABELS["anneal_random_start"], "largest weights alone", "dense"]
    figure.legend(lines + styles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_courses(rows: list[Row], folder: Path, path: Path) -> None:
    """Energy, temperature and accepted proposals of the first network on the first data set."""
    found = groups(rows)
    (dataset, network, _), *_ = found
    kinds = [key for key in found if key[:2] == (dataset, network)]
    figure, panels = plt.subplots(
        3, len(kinds), figsize=(5 * len(kinds), 6.5), sharex=True, squeeze=False, layout="constrained"
    )
    for column, key in enumerate(kinds):
        cells = of(found[key], "anneal_random_start")
        for color, row in zip(COLORS, cells[:: max(1, len(cells) // 4)], strict=False):
            recorded = trace(folder, row)
            names = ("trace_energy", "trace_temperature", "trace_acceptance")
            for axes, name in zip(panels[:, column], names, strict=True):
                values = recorded[name] if recorded[name].ndim == 1 else recorded[name][0]
                label = f"{100 * (1 - row['density']):g} % pruned"
                axes.plot(recorded["trace_step"], values, color=color, lw=1.2, label=label)
        kind = "trained" if key[2] == "pretrain" else key[2]
        title = f"{network}, {dataset}, {kind} weights, from a random mask"
        panels[0, column].set_title(title, loc="left", fontsize=9)
        panels[0, column].legend(frameon=False, fontsize=8)
        panels[2, column].set_xlabel("proposals")
    for axes, name in zip(panels[:, 0], ("energy", "temperature", "accepted share"), strict=True):
        axes.set_ylabel(name)
    for axes in panels[1]:
        axes.set_yscale("log")
    for axes in panels.flat:
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_schedules(schedules: list[Row], folder: Path, path: Path) -> None:
    """Lowest energy so far against proposals, a colour for each start temperature, for each density."""
    densities = sorted({row["density"] for row in schedules if row["method"] != "dense"}, reverse=True)
    figure, panels = plt.subplots(
        1, len(densities), figsize=(5 * len(densities), 3.8), squeeze=False, layout="constrained"
    )
    starts = list(dict.fromkeys(row["method"].partition("_")[0] for row in schedules if row["method"] != "dense"))
    for axes, density in zip(panels[0], densities, strict=True):
        labelled = set()
        for row in (row for row in schedules if row["density"] == density and row["method"] != "dense"):
            recorded, start = trace(folder, row), row["method"].partition("_")[0]
            color, label = COLORS[starts.index(start)], None if start in labelled else start
            labelled.add(start)
            axes.plot(recorded["trace_step"], recorded["trace_best_energy"][0], color=color, lw=1.2, label=label)
        axes.set(xscale="log", xlabel="proposals", ylabel="lowest energy so far")
        axes.set_title(f"{100 * (1 - density):g} % pruned", loc="left", fontsize=10)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, title="start temperature", title_fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
