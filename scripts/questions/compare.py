"""How annealing compares with other methods at equal density: measuring with `sa-jax compare`, table."""

import statistics
import subprocess
import sys
from collections.abc import Iterable

from sa_jax.reports import comparison

from . import figures
from .saved import RESULTS, ROOT, config_path, peers

COMPARISONS = ("compare_mlpnet", "compare_lenet300", "compare_wide")
# Methods of `sa-jax compare` and the rows of peers.json that they should reproduce.
PEERS = {
    "random": "random",
    "magnitude_layerwise": "magnitude by layer",
    "magnitude_global": "global magnitude",
    "wanda_global": "Wanda, global, 1,000 images",
    "snip": "SNIP, 1,000 images",
    "obd": "OBD, diagonal Fisher, 1,000 images",
    "obs_mask": "OBS mask, 8,000 images",
    "cbs_mask": "CBS mask, 1,000 images",
    "woodfisher": "WoodFisher, weights updated",
}
USES = ("uses_labels", "uses_gradients", "moves_weights")


def measure(names: Iterable[str], jobs: int) -> None:
    """Makes the comparisons that are not complete yet, and copies their tables to scripts/results/.

    Cells are kept in a folder for each state of the code, so that none is taken that other code measured.
    """
    run = [sys.executable, "-c", "import sys; from sa_jax.cli import main; sys.exit(main())", "compare"]
    for name in names:
        workdir = ROOT / "runs" / f"{name}-{figures.sources_digest(name)}"
        command = [*run, f"--gin_file={config_path(name)}", f"--workdir={workdir}", f"--jobs={jobs}"]
        if subprocess.run(command).returncode:
            raise SystemExit(f"results: {name} was not finished")
        for source, target in (("results.csv", ".csv"), ("paired.csv", "_paired.csv"), ("results.md", ".md")):
            if f"{name}{target}" in figures.FIGURES[name].files:
                (RESULTS / f"{name}{target}").write_bytes((workdir / source).read_bytes())


def table(rows: list[dict[str, str]]) -> str:
    """All methods on MLPNet: means over seeds, and in brackets what the code of other authors gave."""
    pruned = [row for row in rows if row["method"] != "dense"]
    densities = sorted({float(row["density"]) for row in pruned}, reverse=True)
    heads = [*(f"{100 * density:g} %" for density in densities), "CPU s"]
    lines = ["| branches kept | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    classes = {row["method"]: class_of(row) for row in pruned}
    for number, title in enumerate(comparison.CLASSES):
        methods = [method for method in classes if classes[method] == number]
        lines += [f"| *{title}* |" + " |" * len(heads)] if methods else []
        for method in methods:
            cells = cells_of(method, [row for row in pruned if row["method"] == method], densities)
            lines.append(f"| {comparison.display_name(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def class_of(row: dict[str, str]) -> int:
    """Which of `comparison.CLASSES` a row's method is in."""
    return comparison.class_of({name: row[name] == "True" for name in USES})


def cells_of(method: str, rows: list[dict[str, str]], densities: list[float]) -> list[str]:
    """A method's accuracy at each density, then its mean seconds."""
    cells = []
    for density in densities:
        found = [row["test_accuracy"] for row in rows if float(row["density"]) == density]
        values = [100 * float(accuracy) for accuracy in found if accuracy]
        theirs = f" ({peers()[PEERS[method]][f'{density:g}']:.2f})" if method in PEERS else ""
        cells.append(f"{statistics.mean(values):.2f}{theirs}" if values else "-")
    seconds = statistics.mean(float(row["cpu_seconds"]) for row in rows)
    return [*cells, f"{seconds:.0f}"]
