"""Measures what README.md, results/README.md and chains.md state, saves it in results/, and writes their tables.

    python scripts/results.py accuracy   # MLPNet on MNIST: configs, 7 densities, 3 seeds, a process each; hours
    python scripts/results.py accuracy --configs=mlpnet_mnist   # of these, the short runs; 25 minutes
    python scripts/results.py random     # never trained weights on MNIST, 4 densities, 3 seeds; over an hour
    python scripts/results.py speed      # incremental against full evaluation, side by side; 1 minute
    python scripts/results.py tour       # a generic chain beside a scan written by hand; 1 minute
    python scripts/results.py batching   # chains vmapped or not, proposals evaluated together; 3 minutes
    python scripts/results.py vmapping   # chains vmapped or one after the other, small and large; 15 minutes
    python scripts/results.py warm_starts  # where score search starts at each density of a sweep; 10 minutes
    python scripts/results.py estimates  # what estimates without derivatives cost; 5 minutes
    python scripts/results.py export     # exported networks: bytes, latency, accuracy; 25 minutes
    python scripts/results.py compare    # configs/compare_{mlpnet,lenet300,wide}.gin, into runs/; hours
    python scripts/results.py readme     # tables and picture from the saved results; no measuring

Each question has a module in questions/. The speed of all networks is measured by
`sa-jax bench --out=scripts/results/bench.json`; 40 minutes.

`accuracy`, `random`, `speed`, `export`, `warm_starts` and `compare` need MNIST, `compare` also Fashion-MNIST, and
`accuracy`, `speed`, `warm_starts` and `compare` mlpnet_mnist_93.97.npz in $SA_JAX_DATA. Quote seconds only from a
machine that does nothing else.
"""

import argparse
import sys
from pathlib import Path

from sa_jax.commands.bench import proposals
from sa_jax.types import InputError

sys.path.insert(0, str(Path(__file__).resolve().parent))  # runpy.run_path, which tests use, leaves this folder out
from questions import (
    accuracy,
    batching,
    compare,
    endure,
    estimates,
    export,
    figures,
    layers,
    networks,
    optimum,
    pages,
    random_weights,
    runs,
    saved,
    speed,
    tour,
    vmapping,
    warm_starts,
)

RUNS = {"accuracy": accuracy, "random": random_weights}
MEASURES = {
    "speed": speed.measure,
    "tour": tour.measure,
    "batching": batching.measure,
    "vmapping": vmapping.measure,
    "export": export.measure,
    "estimates": estimates.measure,
    "warm_starts": warm_starts.measure,
}
# By the name of the saved result and of the block in a page.
TEXTS = {
    "accuracy": accuracy.table,
    "random": random_weights.table,
    "speed": speed.sentence,
    "tour": tour.sentence,
    "optimum": optimum.sentences,
    "chains": optimum.chains_table,
    "layers": layers.table,
    "export": export.table,
    "endure": endure.sentences,
    "bench": networks.table,
    "batching": batching.table,
    "vmapping": vmapping.table,
    "estimates": estimates.table,
    "warm_starts": warm_starts.table,
}
# Blocks that were saved as text, by `sa-jax compare` and scripts/prune_minilm.py.
SAVED_TEXTS = ("minilm", "compare_lenet300", "compare_wide")


def rewritten_pages() -> dict[Path, str]:
    """The texts of all pages with every marked block written from the saved results."""
    blocks = {name: text(saved.load(name)) for name, text in TEXTS.items()}
    blocks["parts"] = accuracy.parts_table(saved.load("accuracy"))
    blocks["compare_mlpnet"] = compare.table(saved.load_rows("compare_mlpnet"))
    blocks |= {name: saved.load_page(name) for name in SAVED_TEXTS}
    blocks = {
        name: text + (figures.note(name) if name in figures.FIGURES else "") for name, text in blocks.items()
    }
    blocks["measured"] = figures.table()
    return pages.with_blocks(blocks)


def write_pages() -> None:
    """Draws the picture, and writes all pages."""
    accuracy.draw(saved.load("accuracy"))
    for path, text in rewritten_pages().items():
        path.write_text(text)


def measure(what: str) -> None:
    """Answers one of `MEASURES`, and saves it with the machine and its versions."""
    try:
        result = MEASURES[what]() | {"machine": proposals.machine()}
    except InputError as error:
        raise SystemExit(f"results: {error}") from None
    saved.save(what, result)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, *MEASURES, "compare", "readme"])
    parser.add_argument("--configs", default="", help="of `accuracy`, `random` and `compare`")

    parser.add_argument("--densities", default="", help="of `accuracy` and `random`, as the following")
    parser.add_argument("--seeds", default=",".join(map(str, runs.SEEDS)))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.what == "readme":
        write_pages()
        return
    saved.RESULTS.mkdir(exist_ok=True)
    densities = [float(density) for density in arguments.densities.split(",")] if arguments.densities else None
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.what in RUNS:
        question = RUNS[arguments.what]
        configs = arguments.configs.split(",") if arguments.configs else question.CONFIGS
        if unknown := set(configs) - set(question.CONFIGS):
            parser.error(f"unknown config {min(unknown)}; configs: {', '.join(question.CONFIGS)}")
        question.measure(configs, densities or question.DENSITIES, seeds, arguments.jobs)
    elif arguments.what == "compare":
        compare.measure(arguments.configs.split(",") if arguments.configs else compare.COMPARISONS, arguments.jobs)
    else:
        measure(arguments.what)


if __name__ == "__main__":
    main()
