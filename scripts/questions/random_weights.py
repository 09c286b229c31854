"""How accurate a mask alone makes weights that were never trained: measuring, table."""

import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from . import runs

CONFIG = "random_weights_mnist"
DENSITIES = (0.5, 0.3, 0.2, 0.1)


def measure(densities: Iterable[float], seeds: Iterable[int], jobs: int) -> None:
    """Runs the config at each density with each seed, and saves random.json."""
    tasks = [runs.Task(CONFIG, *task) for task in itertools.product(densities, seeds)]
    runs.measure("random", [CONFIG], tasks, jobs)


def table(result: dict[str, Any]) -> str:
    """Means over seeds, and how far the farthest seed is from them: annealed masks, and random ones."""
    by_density: dict[float, list[dict[str, Any]]] = {}
    for run in sorted(result["runs"], key=lambda run: -run["density"]):
        by_density.setdefault(run["density"], []).append(run)
    seconds = max(run["cpu_seconds"] for run in result["runs"])
    heads = [f"{100 * density:g} %<br>{found[0]['kept']:,}" for density, found in by_density.items()]
    annealed = [cell(found, "test_accuracy", "**") for found in by_density.values()]
    at_random = [cell(found, "random_test_accuracy") for found in by_density.values()]
    lines = [
        "| branches kept | " + " | ".join(heads),
        "|---" * (len(by_density) + 1),
        f"| annealed, at most {seconds:,.0f} s | " + " | ".join(annealed),
        "| as many at random | " + " | ".join(at_random),
    ]
    return " |\n".join(lines) + " |"


def cell(found: list[dict[str, Any]], field: str, mark: str = "") -> str:
    """The mean of a field in %, and how far the farthest seed is from it."""
    values = [100 * run[field] for run in found]
    mean = statistics.mean(values)
    spread = f" ±{max(abs(value - mean) for value in values):.2f}" if len(values) > 1 else ""
    return f"{mark}{mean:.2f}{mark}{spread}"
