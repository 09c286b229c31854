"""Compares ways to search at an equal budget of CPU time: what pays, and what does not.

    python scripts/ablate.py                          # every variant; an hour
    python scripts/ablate.py --seconds=5 --seeds=1 --variants=base,greedy --out=/tmp/try.json

MLPNet on MNIST, its public weights fixed. A variant is the base with a setting or two changed. Each run has a
process and a core of its own, and as many proposals as its first thousand say that the budget allows; what it
really took is recorded. Settings are chosen by the validation accuracy, and the test accuracy is recorded beside
it. Writes FILE.json after every run, resumes where it stopped (not with runs of other code), and at the end draws
FILE.png and writes the table to FILE.md.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import Manager, get_context
from pathlib import Path
from typing import Any

from questions import figures

ROOT = Path(__file__).resolve().parents[1]
DENSITIES = (0.5, 0.02)
BASE: dict[str, Any] = {"samples": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "annealing alone": {"start": "magnitude"},
    "annealing alone, uniform swaps": {"start": "magnitude", "move": "uniform"},
    "annealing alone, saliency swaps": {"start": "magnitude", "move": "saliency"},
    "annealing alone, from random": {"start": "random"},
    "estimates by derivatives": {"estimates": "gradient"},
    "4,000 steps of score search": {"score_steps": 4_000},
    "30,000 steps of score search": {"score_steps": 30_000},
    "score search at temperature 0.1": {"search_temperature": 0.1},
    "score search at temperature 1": {"search_temperature": 1.0},
    "uniform swaps": {"move": "uniform"},
    "saliency swaps": {"move": "saliency"},
    "10,000 samples": {"samples": 10_000},
    "50,000 samples": {"samples": 50_000},
    "logits unscaled": {"logit_scale": 1.0},
    "KL to the dense network": {"energy": "kl_to_teacher"},
    "greedy": {"temperature_start": 0.0, "temperature_end": 0.0, "schedule": "constant"},
    "4 times hotter": {"hotter": 4.0},
    "linear": {"schedule": "linear"},
}
POINTS = 10
# A multiple of `anneal.BLOCK_STEPS`.
CHUNK_STEPS = 200
FIRST_CHUNKS = 5


def measure(variant: str, density: float, seed: int, seconds: float, cores: Any) -> dict[str, Any]:
    """One run, bound to a core of its own."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    try:
        return _measure(variant, density, seed, seconds)
    finally:
        cores.put(core)


def _measure(variant, density, seed, seconds):
    # In the process that is bound to a core, since JAX counts them when it starts.
    import jax
    import jax.numpy as jnp

    from sa_jax import files, pruning
    from sa_jax.annealing.chain import init, run
    from sa_jax.files import datasets
    from sa_jax.networks import masks, mlp

    settings = BASE | VARIANTS[variant]
    samples, hotter = settings.pop("samples"), settings.pop("hotter", 1.0)
    search_temperature = settings.pop("search_temperature", 0.0)
    options = pruning.check_options(pruning.Options(**settings))
    dataset = datasets.load_dataset("mnist", 0.1307, 0.3081)
    network = mlp.network_of(files.load(datasets.data_file("mlpnet_mnist_93.97.npz")))[1]
    kept = masks.num_kept(density, network.total)
    samples = pruning.samples_for(kept, options.move) if samples is None else samples
    setup_key, chain_key = jax.random.split(jax.random.key(seed))
    x, y = (part[:samples] for part in dataset.train)
    first, search_seconds = None, 0.0
    if options.start == "score_search":
        first, search_seconds = initial_mask(
            seed, network, dataset.train, samples, kept, options, search_temperature
        )
    problem = jax.jit(pruning.prepare, static_argnums=(4, 5))(setup_key, network, x, y, kept, options, first)
    problem = problem._replace(
        temperature_start=hotter * problem.temperature_start, temperature_end=hotter * problem.temperature_end
    )

    @jax.jit
    def accuracies(mask):
        pruned = mlp.masked(network, mask)
        splits = (dataset.validation, dataset.test)
        return [
            (mlp.forward(pruned, jnp.asarray(split.inputs)).argmax(-1) == split.labels).mean() for split in splits
        ]

    def chunk(key, problem, state, first_step, num_steps, steps):
        landscape, schedule = (
            pruning.make_landscape(problem, options),
            pruning.make_schedule(problem, options, num_steps),
        )
        return run(key, landscape, state, schedule, first_step, steps, problem.data)[0]

    start = jax.jit(lambda problem: init(pruning.make_landscape(problem, options), problem.mask, problem.data))(
        problem
    )
    next_steps = jax.jit(chunk, static_argnums=5).lower(chain_key, problem, start, 0, 0, CHUNK_STEPS).compile()
    begin = time.process_time()
    state = start
    for first_step in range(0, FIRST_CHUNKS * CHUNK_STEPS, CHUNK_STEPS):
        state = next_steps(chain_key, problem, state, first_step, FIRST_CHUNKS * CHUNK_STEPS)
    jax.block_until_ready(state)
    per_step = (time.process_time() - begin) / (FIRST_CHUNKS * CHUNK_STEPS)
    chunks = max(int((seconds - search_seconds) / per_step / POINTS) // CHUNK_STEPS, 1)
    steps = chunks * CHUNK_STEPS
    points, state, taken = [], start, search_seconds
    for index in range(POINTS):
        begin = time.process_time()
        for first_step in range(index * steps, (index + 1) * steps, CHUNK_STEPS):
            state = next_steps(chain_key, problem, state, first_step, POINTS * steps)
        jax.block_until_ready(state)
        taken += time.process_time() - begin
        energy = float(state.best_energy)
        points.append(((index + 1) * steps, taken, energy, *map(float, accuracies(state.best))))
    names = ("proposals", "cpu_seconds", "energy", "validation_accuracy", "test_accuracy")
    curve = [dict(zip(names, point, strict=True)) for point in points]
    return {"variant": variant, "density": density, "seed": seed, "kept": kept, **curve[-1], "curve": curve}


def initial_mask(seed, network, train, num_samples, kept, options, temperature):
    """The mask of score search on all training samples, and the CPU time that it took once compiled."""
    import jax
    import jax.numpy as jnp

    from sa_jax import pruning

    calibrate = jax.jit(pruning.calibrated_search, static_argnums=(3, 4))
    x, y = map(jnp.asarray, train)
    logit_scale, _ = calibrate(network, x[:num_samples], y[:num_samples], kept, options)
    _, targets = calibrate(network, x, y, kept, options)
    steps = pruning.score_steps(options, network.total, len(x))
    settings = pruning.ScoreSettings(steps, options.estimates, temperature)

    def find(key, network, x, targets, logit_scale):
        energy = pruning.guiding_energy(logit_scale, options)
        return pruning.found_mask(key, network, x, targets, kept, energy, options.activation, settings)

    arguments = jax.random.key(seed), network, x, targets, logit_scale
    compiled = jax.jit(find).lower(*arguments).compile()
    begin = time.process_time()
    mask = jax.block_until_ready(compiled(*arguments))
    return mask, time.process_time() - begin


def table(result: dict[str, Any]) -> str:
    """Validation accuracy, mean and spread over seeds, and CPU time, by variant and density."""
    densities = sorted({run["density"] for run in result["runs"]}, reverse=True)
    lines = ["| variant | " + " | ".join(f"{100 * density:g} % kept" for density in densities) + " |"]
    lines.append("|---" * (len(densities) + 1) + "|")
    for variant in dict.fromkeys(run["variant"] for run in result["runs"]):
        cells = []
        for density in densities:
            runs = [run for run in result["runs"] if (run["variant"], run["density"]) == (variant, density)]
            values = [100 * run["validation_accuracy"] for run in runs]
            if not values:
                cells.append("")
                continue
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            seconds = statistics.mean(run["cpu_seconds"] for run in runs)
            cells.append(f"{statistics.mean(values):.2f}{spread}, {seconds:.0f} s")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(result: dict[str, Any], picture: str) -> str:
    """The table, with what it says beside it, as Markdown."""
    seeds = len({run["seed"] for run in result["runs"]})
    curves = [[point["validation_accuracy"] for point in run["curve"]] for run in result["runs"]]
    lost = [100 * (max(curve) - curve[-1]) for curve in curves if len(curve) > 1]
    return (
        f"# Ways to search, at about {result['seconds']:g} s of CPU time each\n\n"
        "MLPNet 784-40-20-10 on MNIST, weights fixed; validation accuracy in per cent, the mean over "
        f"{seeds} seeds, with the lowest and the highest, and the CPU time that it took.\n\n"
        "- base: score search, of 15,451 steps, then informed swaps; forward estimates, samples chosen by the\n"
        "  branches that stay, cross-entropy, all calibrated, a geometric schedule.\n"
        "- annealing alone: no score search; from the largest weights, or from a random mask.\n"
        "- KL to the dense network: its predictions in place of labels.\n"
        "- greedy: at temperature 0 throughout. 4 times hotter: at both ends of the schedule.\n\n"
        f"{table(result)}\n\n"
        f"Of {len(lost)} runs looked at after each tenth, {lost.count(0)} were best at the end, and none had been "
        f"more than {max(lost, default=0):.1f} points better before.\n\n"
        f"![accuracy against CPU time and proposals]({picture})\n\n"
        f"One core of {result['machine']['processor']}, jax {result['machine']['versions']['jax']}; "
        "`scripts/ablate.py` measured it.\n"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Validation accuracy against CPU time and against proposals, density by density: mean and range of seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    densities = sorted({run["density"] for run in result["runs"]}, reverse=True)
    variants = list(dict.fromkeys(run["variant"] for run in result["runs"]))
    figure = Figure((12, 4 * len(densities)), layout="constrained", dpi=100)
    panels = figure.subplots(len(densities), 2, squeeze=False)
    for row, density in zip(panels, densities, strict=True):
        for axes, across in zip(row, ("cpu_seconds", "proposals"), strict=True):
            ends: list[float] = []
            for number, variant in enumerate(variants):
                runs = [run for run in result["runs"] if (run["variant"], run["density"]) == (variant, density)]
                curves = list(zip(*(run["curve"] for run in runs), strict=False))
                x = [statistics.mean(point[across] for point in points) for points in curves]
                seeds = [[100 * point["validation_accuracy"] for point in points] for points in curves]
                y = [statistics.mean(values) for values in seeds]
                ends.append(y[-1])
                color = f"C{number % 10}"
                axes.fill_between(x, list(map(min, seeds)), list(map(max, seeds)), color=color, alpha=0.08)
                style = "-" if number < 10 else "--"
                axes.plot(x, y, style, marker="." if len(x) < 2 else "", color=color, label=variant)
            axes.set(xlabel=across.replace("cpu_", "CPU "), title=f"{100 * density:g} % kept", xscale="log")
            # The worst would press the others together: they leave the picture below.
            best, usual = max(ends), statistics.quantiles(ends, n=4)[0] if len(ends) > 1 else min(ends)
            axes.set(ylim=(usual - 2 * (best - usual) - 0.5, best + 0.5 * (best - usual) + 0.2))
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        row[0].set(ylabel="validation accuracy (%)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="CPU time of score search and annealing, per run"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--variants", default=",".join(name.replace(",", ";") for name in VARIANTS), help="';' for ','"
    )
    parser.add_argument("--densities", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--out", type=Path, default=ROOT / "scripts/results/ablation.json")
    arguments = parser.parse_args()
    variants = [name.replace(";", ",") for name in arguments.variants.split(",")]
    if unknown := [name for name in variants if name not in VARIANTS]:
        parser.error(f"unknown variant {unknown[0]!r}; variants: {'; '.join(VARIANTS)}")
    densities = [float(density) for density in arguments.densities.split(",")]
    code = figures.sources_digest("ablation")
    result: dict[str, Any] = {"seconds": arguments.seconds, "base": BASE, "variants": VARIANTS, "runs": []}
    if arguments.out.exists():
        earlier = json.loads(arguments.out.read_text())
        if earlier["seconds"] != arguments.seconds:
            parser.error(f"{arguments.out} holds runs of {earlier['seconds']} s: give another --out, or remove it")
        same = [
            run
            for run in earlier["runs"]
            if earlier["variants"].get(run["variant"]) == VARIANTS.get(run["variant"]) and run.get("code") == code
        ]
        result["runs"] = same if earlier["base"] == BASE else []
    done = {(run["variant"], run["density"], run["seed"]) for run in result["runs"]}
    tasks = [
        (variant, density, seed)
        for seed in range(arguments.seeds)
        for density in densities
        for variant in variants
        if (variant, density, seed) not in done
    ]
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    with (
        Manager() as manager,
        ProcessPoolExecutor(len(available), get_context("spawn"), max_tasks_per_child=1) as executor,
    ):
        cores = manager.Queue()
        for core in available:
            cores.put(core)
        futures = [executor.submit(measure, *task, arguments.seconds, cores) for task in tasks]
        for number, future in enumerate(as_completed(futures), 1):
            run = future.result()
            result["runs"].append(run | {"code": code})
            save(result, arguments.out)
            print(
                f"{number}/{len(tasks)}  {run['variant']}, density {run['density']}, seed {run['seed']}: "
                f"validation {run['validation_accuracy']:.4f}, {run['proposals']:,} proposals, "
                f"{run['cpu_seconds']:.0f} s",
                flush=True,
            )
    from sa_jax.commands.hardware import machine

    result["machine"] = machine()
    save(result, arguments.out)
    draw(result, arguments.out.with_suffix(".png"))
    arguments.out.with_suffix(".md").write_text(page(result, arguments.out.with_suffix(".png").name))
    print(table(result))


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the runs so far, whole or not at all."""
    result["runs"].sort(key=lambda run: (list(VARIANTS).index(run["variant"]), -run["density"], run["seed"]))
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".writing") as file:
        json.dump(result, file, indent=1)
    os.replace(file.name, path)


if __name__ == "__main__":
    main()
