"""How accurate a mask alone makes weights that were never trained: measuring, table."""

import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from . import runs

CONFIG_LABELS = {
    "random_weights_mnist": "score search, then annealing",
    "random_weights_mnist_long": "the same, longer",
}
CONFIGS = list(CONFIG_LABELS)
DENSITIES = (0.5, 0.3, 0.2, 0.1)


def measure(configs: Iterable[str], densities: Iterable[float], seeds: Iterable[int], jobs: int) -> None:
    """Runs the configs at each density with each seed, and saves random.json."""
    tasks = [runs.Task(*task) for task in itertools.product(configs, densities, seeds)]
    runs.measure("random", CONFIGS, tasks, jobs)


def table(result: dict[str, Any]) -> str:
    """Means over seeds, and how far the farthest seed is from them: found masks, and random ones."""
    kept = {run["density"]: run["kept"] for run in result["runs"]}
    densities = sorted(kept, reverse=True)
    heads = [f"{100 * density:g} %<br>{kept[density]:,}" for density in densities]
    lines = ["| branches kept | " + " | ".join(heads), "|---" * (len(densities) + 1)]
    for config, label in CONFIG_LABELS.items():
        found = [run for run in result["runs"] if run["config"] == config]
        if found:
            seconds = max(run["cpu_seconds"] for run in found)
            cells = [cell(found, density, "test_accuracy", "**") for density in densities]
            lines.append(f"| {label}, at most {seconds:,.0f} s | " + " | ".join(cells))
    at_random = [cell(result["runs"], density, "random_test_accuracy") for density in densities]
    lines.append("| as many at random | " + " | ".join(at_random))
    return " |\n".join(lines) + " |"


def cell(runs: list[dict[str, Any]], density: float, field: str, mark: str = "") -> str:
    """The mean of a field in % at a density, and how far the farthest seed is from it; empty if not measured."""
    values = [100 * run[field] for run in runs if run["density"] == density]
    if not values:
        return ""
    mean = statistics.mean(values)
    spread = f" ±{max(abs(value - mean) for value in values):.2f}" if len(values) > 1 else ""
    return f"{mark}{mean:.2f}{mark}{spread}"
