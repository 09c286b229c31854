"""Measures what README.md and results/README.md state, saves it in results/, and writes their tables from there.

    python scripts/results.py accuracy   # MLPNet on MNIST: configs, 7 densities, 3 seeds, a process each; hours
    python scripts/results.py accuracy --configs=mlpnet_mnist   # of these, the short runs; 20 minutes
    python scripts/results.py random     # never trained weights on MNIST, 4 densities, 3 seeds; over an hour
    python scripts/results.py speed      # incremental against full evaluation, side by side; 1 minute
    python scripts/results.py batching   # chains vmapped or not, proposals evaluated together; 3 minutes
    python scripts/results.py export     # exported networks: bytes, latency, accuracy; 25 minutes
    python scripts/results.py compare    # configs/compare_mlpnet.gin and compare_lenet300.gin, into runs/; hours
    python scripts/results.py readme     # tables and picture from the saved results; no measuring

The speed of all networks is measured by `sa-jax bench --out=scripts/results/bench.json`; 40 minutes.

`accuracy`, `random`, `speed`, `export` and `compare` need MNIST, `compare` also Fashion-MNIST, and `accuracy`,
`speed` and `compare` mlpnet_mnist_93.97.npz in $SA_JAX_DATA. Quote seconds only from a machine that does nothing
else.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import anneal, bench, bench_export, comparison, data, from_energy, geometric, masks, models
from sa_jax.energies import cross_entropy
from sa_jax.incremental import full_mlp, masked_mlp
from sa_jax.moves import move_fn, uniform_swap
from sa_jax.types import InputError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
PAGES = (ROOT / "README.md", RESULTS / "README.md")
DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
SEEDS = (0, 1, 2)
CONFIG_LABELS = {
    "mlpnet_mnist": "annealed",
    "mlpnet_mnist_derivative_free": "annealed without any derivative",
    "mlpnet_mnist_long": "annealed longer",
    "mlpnet_mnist_nudge": "annealed, weights nudged",
}
CONFIGS = list(CONFIG_LABELS)
COMPARISONS = ("compare_mlpnet", "compare_lenet300", "compare_lenet300_polish")
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
RANDOM_CONFIG = "random_weights_mnist"
RANDOM_DENSITIES = (0.5, 0.3, 0.2, 0.1)
DRAWN_DENSITIES = (0.1, 0.05, 0.02)
SPEED_SAMPLES = 2_000
SPEED_ROUNDS = 7
FULL_STEPS, INCREMENTAL_STEPS = 300, 20_000
BATCHED_CHAINS = 16
LOW_TEMPERATURE = 1e-6


def measure_accuracy(
    path: Path, known: list[str], configs: list[str], densities: list[float], seeds: list[int], jobs: int
) -> None:
    """Runs configs as a user would, only density and seed overridden, each run in a process of its own.

    Saves them at `path` after every run, and goes on where it stopped. A changed config begins anew. Of `known`
    configs, runs already saved stay.
    """
    saved = json.loads(path.read_text())["runs"] if path.exists() else []
    digests = {config: hashlib.sha256(config_path(config).read_bytes()).hexdigest() for config in known}
    runs = [run for run in saved if digests.get(run["config"]) == run["config_sha256"]]
    done = {(run["config"], run["density"], run["seed"]) for run in runs}
    tasks = [task for task in itertools.product(configs, densities, seeds) if task not in done]
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(one_run, *task) for task in tasks]
        for number, future in enumerate(as_completed(futures), 1):
            run = future.result()
            runs.append(run | {"config_sha256": digests[run["config"]]})
            runs.sort(key=lambda run: (known.index(run["config"]), -run["density"], run["seed"]))
            write(path, {"runs": runs})
            print(
                f"{number}/{len(tasks)}  {run['config']}, density {run['density']}, seed {run['seed']}: "
                f"{run['test_accuracy']:.4f}, {run['cpu_seconds']:.0f} s of CPU time",
                flush=True,
            )


def config_path(config: str) -> Path:
    """Where a config lies, by its name."""
    return ROOT / "configs" / f"{config}.gin"


def one_run(config: str, density: float, seed: int) -> dict[str, Any]:
    """What is kept of one run's result."""
    fields = ["density", "seed", "kept", "total", "test_accuracy", "validation_accuracy", "num_samples"]
    fields += ["num_steps", "num_chains", "move", "uses_gradients", "moves_weights", "dense_test_accuracy"]
    fields += ["magnitude_test_accuracy", "random_test_accuracy", "versions"]
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, str(ROOT / "scripts/run.py"), f"--gin_file={config_path(config)}"]
        command += [f"--gin_bindings=DENSITY={density}", f"--gin_bindings=SEED={seed}", f"--workdir={workdir}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
        said = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        wall_seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(said.decode())
        result = json.loads((Path(workdir) / "result.json").read_text())
        if (config, density, seed) == (CONFIGS[0], DENSITIES[-1], SEEDS[0]):
            (RESULTS / "masks.npz").write_bytes((Path(workdir) / "masks.npz").read_bytes())
    # Of the whole command: starting, loading and compiling too.
    seconds = {"cpu_seconds": used.ru_utime + used.ru_stime, "wall_seconds": wall_seconds}
    kept = {name: result[name] for name in fields}
    return {"config": config} | kept | seconds | {"machine": bench.machine()["processor"]}


def measure_comparisons(jobs: int) -> None:
    """Makes the comparisons that are not complete yet, and copies their tables to scripts/results/."""
    run = [sys.executable, "-c", "import sys; from sa_jax.cli import main; sys.exit(main())", "compare"]
    for name in COMPARISONS:
        workdir = ROOT / "runs" / name
        command = [*run, f"--gin_file={config_path(name)}", f"--workdir={workdir}", f"--jobs={jobs}"]
        if subprocess.run(command).returncode:
            raise SystemExit(f"results: {name} was not finished")
        for source, target in (("results.csv", ".csv"), ("paired.csv", "_paired.csv"), ("results.md", ".md")):
            (RESULTS / f"{name}{target}").write_bytes((workdir / source).read_bytes())


def measure_speed() -> dict[str, Any]:
    """Proposals per second of both landscapes of MLPNet, one chain each, taking turns on one core.

    One core because a run gives each chain one: on more, full evaluation would use them all at once.
    """
    use_one_core()
    dataset = data.load("mnist", 0.1307, 0.3081)
    weights = models.load_weights(data.data_file("mlpnet_mnist_93.97.npz"))
    network = models.network_of(weights)[1]
    x, y = (jnp.asarray(part[:SPEED_SAMPLES]) for part in dataset.train)
    mask = masks.by_score(jnp.abs(masks.flatten(network.kernels)), masks.num_kept(0.05, network.total))
    swaps, energy = uniform_swap(), cross_entropy(4.0)
    start = (mask, swaps.init(mask))
    # Full evaluation is faster with the samples first, so that this is what counts.
    by_sample = from_energy(
        lambda p, x, y: energy(models.forward(models.masked(network, p[0]), x), y), move_fn(swaps)
    )
    cases = {
        "full": (by_sample, start, (x, y), FULL_STEPS),
        "full_mlp": (full_mlp(network, swaps, energy), start, (x.T, y), FULL_STEPS),
        "incremental": (masked_mlp(network, swaps, energy), mask, (x.T, y), INCREMENTAL_STEPS),
    }
    calls = {}
    for name, (landscape, position, samples, steps) in cases.items():
        schedule = geometric(2e-3, 1e-4, steps)
        jitted = jax.jit(lambda k, p, d, of=landscape, t=schedule, n=steps: anneal(k, of, p, t, n, d).final_energy)
        calls[name] = partial(jitted, jax.random.key(0), position, samples)
    seconds = take_turns(calls)
    rates = {name: cases[name][3] / statistics.median(times) for name, times in seconds.items()}
    print(f"proposals per second: {rates}")
    return {
        "network": network.sizes,
        "samples": SPEED_SAMPLES,
        "rounds": SPEED_ROUNDS,
        "steps": {name: case[3] for name, case in cases.items()},
        "seconds": seconds,
        "proposals_per_second": rates,
        "ratio": rates["incremental"] / rates["full"],
        "seed": 0,
    }


def measure_batching() -> dict[str, Any]:
    """Times chains vmapped in groups or one after the other, and proposals evaluated together, on one core.

    Networks and data are those of `sa-jax bench`. Proposals are evaluated together after a greedy descent, at
    temperatures at which few are accepted: with many, the later ones of a group are wasted.
    """
    use_one_core()
    synthetic = bench.synthesize(bench.NETWORKS[0], 0.05, SPEED_SAMPLES)
    landscape, samples = bench.incremental(synthetic.network), (synthetic.inputs, synthetic.labels)
    keys, steps = jax.random.split(jax.random.key(0), BATCHED_CHAINS), 500
    calls = {}
    for batch in (1, 4, BATCHED_CHAINS):

        def chains(keys, mask, samples, batch=batch):
            def chain(key):
                return anneal(key, landscape, mask, 1e-3, steps, samples).final_energy

            return jax.lax.map(chain, keys, batch_size=None if batch == 1 else batch)

        calls[batch] = partial(jax.jit(chains), keys, synthetic.mask, samples)
    seconds = take_turns(calls)
    chain_batch = [
        {"chain_batch": batch, "microseconds": 1e6 * statistics.median(times) / (steps * BATCHED_CHAINS)}
        for batch, times in seconds.items()
    ]
    together = []
    for sizes, number in (
        ((64, 32, 16, 10), 300),
        (bench.NETWORKS[0], SPEED_SAMPLES),
        (bench.NETWORKS[1], SPEED_SAMPLES),
    ):
        synthetic = bench.synthesize(sizes, 0.05, number)
        landscape, samples = bench.incremental(synthetic.network), (synthetic.inputs, synthetic.labels)
        mask = anneal(jax.random.key(1), landscape, jnp.asarray(synthetic.mask), 0.0, 10_000, samples).final
        steps, calls = 6_000_000 // number, {}
        for at_once in (1, 2, 4, 8):

            def speculated(key, mask, samples, of=landscape, steps=steps, at_once=at_once):
                result = anneal(key, of, mask, LOW_TEMPERATURE, steps, samples, together=at_once)
                return result.final_energy, result.num_accepted

            calls[at_once] = partial(jax.jit(speculated), jax.random.key(0), mask, samples)
        accepted = float(calls[1]()[1]) / steps
        seconds = take_turns(calls)
        times = {at_once: 1e6 * statistics.median(times) / steps for at_once, times in seconds.items()}
        together.append({"network": sizes, "samples": number, "accepted": accepted, "microseconds": times})
    print(json.dumps([chain_batch, together], indent=1))
    return {
        "network": bench.NETWORKS[0],
        "chains": BATCHED_CHAINS,
        "chain_batch": chain_batch,
        "together": together,
    }


def measure_export() -> dict[str, Any]:
    """Every exported form of 784-300-100-10 at six densities, annealed first unless runs/export holds them."""

    def tell(message: str) -> None:
        print(message, file=sys.stderr)

    return bench_export.measure(bench_export.run_all(ROOT / "runs/export", False, tell), tell=tell)


def use_one_core() -> None:
    """Binds this process to one core, as each chain of a run is."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def take_turns(calls: dict[Any, Callable[[], Any]]) -> dict[Any, list[float]]:
    """Seconds of each call, round by round, after one that compiles."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(SPEED_ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def accuracy_table(result: dict[str, Any]) -> str:
    """The README's table of accuracies: means over seeds, how far the farthest seed is, and the best in bold.

    Where weights stay and where they move are told apart; the strongest rivals of the comparison are there too.
    """
    peers = json.loads((RESULTS / "peers.json").read_text())["test_accuracy"]
    with (RESULTS / "compare_mlpnet.csv").open() as file:
        compared = list(csv.DictReader(file))
    densities = sorted({run["density"] for run in result["runs"]}, reverse=True)
    kept = {run["density"]: run["kept"] for run in result["runs"]}
    rows: dict[bool, list[tuple[str, list[tuple[float, float] | None]]]] = {False: [], True: []}

    def peer(name: str) -> list[tuple[float, float] | None]:
        return [(peers[name][f"{density:g}"], 0.0) for density in densities]

    def over_seeds(found: list[dict[str, Any]]) -> list[tuple[float, float] | None]:
        cells: list[tuple[float, float] | None] = []
        for density in densities:
            values = [100 * float(one["test_accuracy"]) for one in found if float(one["density"]) == density]
            mean = statistics.mean(values) if values else 0.0
            cells.append((mean, max(abs(value - mean) for value in values)) if values else None)
        return cells

    def rival(method: str) -> tuple[str, list[tuple[float, float] | None]]:
        found = [row for row in compared if row["method"] == method]
        seconds = max(float(row["cpu_seconds"]) for row in found)
        return f"{comparison.display_name(method).lower()}, at most {seconds:,.0f} s", over_seeds(found)

    rows[False].append(("global magnitude", peer("global magnitude")))
    best_of_peers: list[tuple[float, float] | None] = [(best_frozen(peers, density), 0.0) for density in densities]
    rows[False] += [("best of ten other masks", best_of_peers), rival("edge_popup_scaled")]
    rows[True] += [("CHITA++", peer("CHITA++, weights updated")), rival("magnitude_finetuned")]
    for config, label in CONFIG_LABELS.items():
        runs = [run for run in result["runs"] if run["config"] == config]
        if runs:
            seconds = max(run["cpu_seconds"] for run in runs)
            rows[runs[0]["moves_weights"]].append((f"{label}, at most {seconds:,.0f} s", over_seeds(runs)))
    heads = [f"{100 * density:g} %<br>{kept[density]:,}" for density in densities]
    lines = ["| branches kept | " + " | ".join(heads), "|---" * (len(densities) + 1)]
    for moved, title in ((False, "weights never changed"), (True, "weights moved")):
        lines.append(f"| *{title}* " + "| " * len(densities))
        best = [
            max(cell[0] for cell in column if cell) for column in zip(*(c for _, c in rows[moved]), strict=True)
        ]
        for label, cells in rows[moved]:
            texts = []
            for cell, highest in zip(cells, best, strict=True):
                mark = "**" if cell and cell[0] == highest else ""
                spread = f" ±{cell[1]:.2f}" if cell and cell[1] else ""
                texts.append(f"{mark}{cell[0]:.2f}{mark}{spread}" if cell else "")
            lines.append(f"| {label} | " + " | ".join(texts))
    return " |\n".join(lines) + " |"


def random_table(result: dict[str, Any]) -> str:
    """The README's table of never trained weights, like `accuracy_table`."""
    runs: dict[float, list[dict[str, Any]]] = {}
    for run in sorted(result["runs"], key=lambda run: -run["density"]):
        runs.setdefault(run["density"], []).append(run)

    def cells(field: str, mark: str) -> str:
        texts = []
        for of in runs.values():
            values = [100 * run[field] for run in of]
            mean = statistics.mean(values)
            spread = f" ±{max(abs(value - mean) for value in values):.2f}" if len(values) > 1 else ""
            texts.append(f"{mark}{mean:.2f}{mark}{spread}")
        return " | ".join(texts)

    seconds = max(run["cpu_seconds"] for run in result["runs"])
    lines = [
        "| branches kept | "
        + " | ".join(f"{100 * density:g} %<br>{of[0]['kept']:,}" for density, of in runs.items()),
        "|---" * (len(runs) + 1),
        f"| annealed, at most {seconds:,.0f} s | " + cells("test_accuracy", "**"),
        "| as many at random | " + cells("random_test_accuracy", ""),
    ]
    return " |\n".join(lines) + " |"


def compare_table(rows: list[dict[str, str]]) -> str:
    """The README's table of all methods on MLPNet: means over seeds; in brackets what the peers' code gave."""
    peers = json.loads((RESULTS / "peers.json").read_text())["test_accuracy"]
    pruned = [row for row in rows if row["method"] != "dense"]
    densities = sorted({float(row["density"]) for row in pruned}, reverse=True)
    heads = [*(f"{100 * density:g} %" for density in densities), "CPU s"]
    lines = ["| branches kept | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    kinds = {row["method"]: comparison.class_of({name: row[name] == "True" for name in USES}) for row in pruned}
    for kind, title in enumerate(comparison.CLASSES):
        of_class = [method for method in kinds if kinds[method] == kind]
        lines += [f"| *{title}* |" + " |" * len(heads)] if of_class else []
        for method in of_class:
            cells = []
            for density in densities:
                of = [row for row in pruned if (row["method"], float(row["density"])) == (method, density)]
                values = [100 * float(row["test_accuracy"]) for row in of if row["test_accuracy"]]
                theirs = f" ({peers[PEERS[method]][f'{density:g}']:.2f})" if method in PEERS else ""
                cells.append(f"{statistics.mean(values):.2f}{theirs}" if values else "-")
            seconds = statistics.mean(float(row["cpu_seconds"]) for row in pruned if row["method"] == method)
            cells.append(f"{seconds:.0f}")
            lines.append(f"| {comparison.display_name(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_frozen(peers: dict[str, dict[str, float]], density: float) -> float:
    """The best that any method reaches which leaves the weights as they are."""
    return max(row[f"{density:g}"] for name, row in peers.items() if "weights updated" not in name)


def speed_line(result: dict[str, Any]) -> str:
    """The README's sentence on speed."""
    rates = result["proposals_per_second"]
    return (
        f"On {'-'.join(map(str, result['network']))} with {result['samples']:,} samples one chain made "
        f"{rates['incremental']:,.0f} exact proposals a second, against {rates['full']:,.0f} by full evaluation: "
        f"{result['ratio']:.0f} times as many (medians of {result['rounds']} alternating rounds on one core of "
        f"{result['machine']['processor']}, jax {result['machine']['versions']['jax']})."
    )


def bench_table(result: dict[str, Any]) -> str:
    """The README's table of the speed of all networks at density 0.05 and 2,000 samples, one chain on one core."""
    lines = [
        "| network | full evaluation | compiled loop | here | of the ceiling | full / here | compiled / here |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = [row for row in result["rows"] if row["samples"] == 2_000]
    single = [row for row in chosen if row["chains"] == row["cores"] == 1]
    largest = [row for row in single if row["mask"] == "largest weights" and row["density"] == 0.05]
    for network in dict.fromkeys(row["network"] for row in largest):
        row = {row["method"]: row for row in largest if row["network"] == network}
        naive, compiled, here = (row[name]["microseconds"] for name in ("naive", "compiled", "incremental"))
        lines.append(
            f"| {network} | {naive:,.0f} | {compiled:,.0f} | **{here:,.0f}** "
            f"| {row['incremental']['ceiling_fraction']:.0%} | {naive / here:,.0f} | {compiled / here:.2f} |"
        )
    times = {
        (row["network"], row["chains"], row["cores"]): row["microseconds"]
        for row in chosen
        if row["method"] == "incremental" and row["mask"] == "largest weights" and row["density"] == 0.05
    }
    cores = [
        times[network, chains, 1] / times[network, chains, 2]
        for network, chains, cores in times
        if cores == 2 and (network, chains, 1) in times
    ]
    many = [
        times[network, 1, 1] / taken
        for (network, chains, cores), taken in times.items()
        if (chains, cores) == (64, 1)
    ]
    widths = [row for row in single if row["mask"] != "largest weights" and row["method"] == "incremental"]
    narrow, *_, wide = sorted(widths, key=lambda row: int(row["network"].split("-")[1]))
    machine = result["machine"]
    lines.append(
        f"\nTwo cores made {min(cores):.2f} to {max(cores):.2f} times the proposals of one; with 64 chains one "
        f"core made {min(many):.2f} to {max(many):.2f} times those of one chain. From {narrow['network']} to "
        f"{wide['network']}, {bench.WIDTHS_FAN_OUT} branches kept per unit, the time grew from "
        f"{narrow['microseconds']:.0f} to {wide['microseconds']:.0f} us. One core of {machine['processor']}, "
        f"jax {machine['versions']['jax']}; `scripts/results/bench.json` holds all rows."
    )
    return "\n".join(lines)


def batching_lines(result: dict[str, Any]) -> str:
    """The README's sentences on chains and proposals evaluated together."""
    batches = ", ".join(f"{row['microseconds']:.0f} ({row['chain_batch']})" for row in result["chain_batch"])
    network = "-".join(map(str, result["network"]))
    text = (
        f"Microseconds per proposal of {result['chains']} chains of {network} on one core, in brackets how many "
        f"were vmapped together: {batches}. Proposals evaluated together, likewise:\n\n"
        "| network | samples | accepted | 1 | 2 | 4 | 8 together |\n|---|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| {'-'.join(map(str, row['network']))} | {row['samples']:,} | {row['accepted']:.1%} | "
        + " | ".join(f"{taken:.1f}" for taken in row["microseconds"].values())
        + " |"
        for row in result["together"]
    ]
    return text + "\n".join(rows)


def optimum_lines(result: dict[str, Any]) -> str:
    """The README's sentences on the true optimum."""

    def at(search: str, budget: int) -> dict[str, Any]:
        return next(row for row in result["rows"] if (row["search"], row["budget"]) == (search, budget))

    most = max(row["budget"] for row in result["rows"])
    others = ", ".join(
        f"{at(search, most)['found']:.0%} and {at(search, most)['mean_gap']:.2%} for {label}"
        for search, label in (
            ("greedy", "greedy descent"),
            ("restarted", "greedy descent restarted now and then"),
            ("random", "random search"),
        )
    )
    annealing = at("annealing", most)
    return (
        f"On {result['networks']} random networks small enough to try all {result['masks']:,} masks, annealing "
        f"found the true optimum on {annealing['found']:.0%} of them with {most:,} proposals. Its mean gap was "
        f"{annealing['mean_gap']:.2%} of what lies between the optimum and the mean of all masks; {others}."
    )


def chains_table(result: dict[str, Any]) -> str:
    """The README's table of independent chains on one network: their energies, and how alike their masks are."""
    lines = [
        "| kept | best energies | spread | Jaccard of two masks | of two random ones | with the start |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        energies, overlap = row["best_energy_per_chain"], row["mask_overlap"]
        low, high = min(energies), max(energies)
        lines.append(
            f"| {100 * row['density']:g} % | {low:.4f} to {high:.4f} | {(high - low) / low:.1%} "
            f"| {overlap['jaccard_mean']:.2f} | {overlap['jaccard_of_random']:.2f} "
            f"| {overlap['jaccard_with_start']:.2f} |"
        )
    return "\n".join(lines)


def layers_table(result: dict[str, Any]) -> str:
    """The README's table of how fast layers are annealed, and what follows for a large model."""

    def row_of(layer: dict[str, Any], gram: str, cores: int) -> dict[str, Any] | None:
        wanted = layer["outputs"], layer["inputs"], gram, cores
        found = (
            row for row in result["rows"] if wanted == (row["outputs"], row["inputs"], row["gram"], row["cores"])
        )
        return next(found, None)

    lines = [
        "| layer | draws/s | proposals/s | of copying | two cores, draws/s | float16, draws/s | its error |",
        "|---|---|---|---|---|---|---|",
    ]
    firsts = [row for row in result["rows"] if (row["gram"], row["cores"]) == ("float32", 1)]
    for first in firsts:
        half, both = row_of(first, "float16", 1), row_of(first, "float32", 2)
        assert half is not None
        copies = {int(size): rate for size, rate in result["ceilings"]["copy_bytes_per_second"].items()}
        gram_bytes = 4 * first["inputs"] ** 2
        copying = copies[min((size for size in copies if size >= gram_bytes), default=max(copies))]
        lines.append(
            f"| {first['outputs']}x{first['inputs']} | {first['draws_per_second'] / 1e3:,.0f} k "
            f"| {first['proposals_per_second'] / 1e6:,.0f} M | {first['gram_bytes_per_second'] / copying:.0%} "
            f"| {'' if both is None else format(both['draws_per_second'] / 1e3, ',.0f') + ' k'} "
            f"| {half['draws_per_second'] / 1e3:,.0f} k | {half['layer_error'] / first['layer_error'] - 1:+.2%} |"
        )
    flips = [row["flips_per_second"] for row in firsts if row["flips_per_second"]]
    other = (
        f" dwave-samplers tried {flips[0] / 1e6:.1f} million flips a second in turns with the first."
        if flips
        else ""
    )
    ahead, machine = result["forecast"], result["machine"]
    return "\n".join(lines) + (
        f"\n\nOne core of {machine['processor']}, jax {machine['versions']['jax']}; medians of "
        f"{result['rounds']} rounds.{other} On paper, a model of {ahead['weights'] / 1e9:.1f} billion such "
        f"weights moves {ahead['bytes_per_sweep_float16'] / 1e12:,.0f} TB of float16 Gram matrices per sweep, "
        f"{ahead['hours_at_memory_bandwidth'] * 60:.1f} minutes at 3.35 TB/s, and holds "
        f"{ahead['largest_gram_bytes_float16'] / 1e6:,.0f} MB of them at a time."
    )


def export_table(result: dict[str, Any]) -> str:
    """The README's table of exported networks: bytes, microseconds and accuracy by density and bits."""
    rows = result["rows"]

    def smallest(density: float, bits: int) -> dict[str, Any]:
        wanted = density, "smallest", bits
        return next(row for row in rows if wanted == (row["density"], row["form"], row["bits"]))

    def cells(row: dict[str, Any]) -> str:
        return f"{row['bytes'] / 1e3:,.1f} | {row['microseconds']:.0f} | {100 * row['test_accuracy']:.1f}"

    lines = [
        "| kept | C, float32: kB | us | % right | C, 4 bits: kB | us | % right | packed: kB | masks over bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for density in sorted({row["density"] for row in rows if row["density"] < 1}, reverse=True):
        whole, few = smallest(density, 32), smallest(density, 4)
        over = few["mask_bytes"] / few["mask_entropy_bytes"] - 1
        packed = f"{few['packed_bytes'] / 1e3:.1f} | {over:+.1%}"
        lines.append(f"| {100 * density:g} % | {cells(whole)} | {cells(few)} | {packed} |")
    dense = [row for row in rows if row["density"] == 1]
    said = "; ".join(
        f"{row['engine']}{', 8 bits' if row['bits'] == 8 else ''}: {row['bytes'] / 1e3:,.0f} kB, "
        f"{row['microseconds']:.0f} us, {100 * row['test_accuracy']:.1f} %"
        for row in dense
    )
    int8 = [row for row in rows if row["engine"] == "onnxruntime" and row["bits"] == 8]
    wrong, wrong_int8 = (sum(row["other_predictions"] for row in of) for of in (rows, int8))
    worst = max(row["largest_relative_error"] for row in rows if row["engine"].startswith("C"))
    machine = result["machine"]
    return "\n".join(lines) + (
        f"\n\nThe dense network: {said}. {bench_export.honest_line(result)} Of {len(rows)} programs, each over "
        f"all test images, {wrong - wrong_int8} predictions differ from JAX's with the same weights, but for "
        f"onnxruntime's 8 bits, where {wrong_int8} differ from those of float32; logits in C are off by at "
        f"most {worst:.1g} of the largest. One core of {machine['processor']}, medians of {bench_export.ROUNDS} "
        f"rounds in turns; {result['compiler']}; vectorized: {result['vectorized']}; one seed."
    )


def endure_lines(result: dict[str, Any]) -> str:
    """What the README says of kills, checkpoints, long runs and damaged inputs."""
    kills, cost, soak = (result[name] for name in ("kills", "cost", "soak"))
    counted = [found for kind, found in result["fuzz"].items() if kind != "machine"]
    read, refused = (sum(found[name] for found in counted) for name in ("read", "refused"))
    first, last = soak["bytes"][0] / 1e9, soak["bytes"][-1] / 1e9
    every_3_s, size = cost["share_of_time_every_3_s"], cost["bytes_of_64_chains_784_300_100_10"] / 1e6
    same = "ended with" if kills["same_bits"] else "did NOT end with"
    return (
        f"As `scripts/endure.py` found it: killed by `kill -9` {kills['kills']} times at random, with checkpoints "
        f"every {kills['checkpoint_seconds']:g} s, a run went on {kills['resumed']} times, lost at most "
        f"{kills['most_seconds_of_annealing_lost']:.1f} s of annealing each time, and {same} the bits of one "
        f"left alone. A checkpoint every 3 s took {every_3_s:.1%} more time (median of "
        f"{len(cost['seconds_without'])} rounds in turns), so that one every 30 s takes {every_3_s / 10:.1%}; "
        f"one of 64 chains of 784-300-100-10 takes {size:.1f} MB. In {soak['minutes']:.0f} minutes of "
        f"{soak['chains']} chains memory went from {first:.3f} to {last:.3f} GB, and the energy was never further "
        f"off than {soak['max_energy_drift']:.1g}. Of {read + refused:,} damaged files and settings {refused:,} "
        f"were refused in one line and {read:,} read; none did anything else. {kills['machine']['processor']}, "
        f"jax {kills['machine']['versions']['jax']}."
    )


def written_anew() -> dict[Path, str]:
    """The texts of `PAGES` with every block between `<!-- NAME -->` and `<!-- end -->` written anew."""
    renders = {
        "accuracy": accuracy_table,
        "random": random_table,
        "speed": speed_line,
        "optimum": optimum_lines,
        "chains": chains_table,
        "layers": layers_table,
        "export": export_table,
        "endure": endure_lines,
        "bench": bench_table,
        "batching": batching_lines,
    }
    blocks = {name: render(json.loads((RESULTS / f"{name}.json").read_text())) for name, render in renders.items()}
    with (RESULTS / "compare_mlpnet.csv").open() as file:
        blocks["compare_mlpnet"] = compare_table(list(csv.DictReader(file)))
    blocks["minilm"] = (RESULTS / "minilm.md").read_text().strip()
    blocks["compare_lenet300_polish"] = (RESULTS / "compare_lenet300_polish.md").read_text().strip()
    blocks["compare_lenet300"] = (RESULTS / "compare_lenet300.md").read_text().strip()
    pages = {path: path.read_text() for path in PAGES}
    for name, block in blocks.items():
        places = [path for path, text in pages.items() if f"<!-- {name} -->\n" in text]
        if len(places) != 1:
            raise SystemExit(f"{len(places)} pages have a block <!-- {name} --> ... <!-- end -->")
        before, start, rest = pages[places[0]].partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        pages[places[0]] = before + start + block + "\n" + end + after
    return pages


def draw(result: dict[str, Any]) -> None:
    """Draws the README's picture: accuracies, and the pixels that 2 % of the branches still look at."""
    import matplotlib
    from matplotlib.figure import Figure

    runs = [run for run in result["runs"] if run["config"] == CONFIGS[0]]
    figure = Figure((9.6, 3.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
    kinds = {
        "": ("annealed", "#0072b2"),
        "magnitude_": ("global magnitude", "#9aa3ab"),
        "random_": ("random", "#d5dade"),
    }
    places = np.arange(len(DRAWN_DENSITIES))
    for offset, (kind, (label, color)) in zip((-0.27, 0, 0.27), kinds.items(), strict=True):
        values = [
            [100 * run[f"{kind}test_accuracy"] for run in runs if run["density"] == density]
            for density in DRAWN_DENSITIES
        ]
        means = [statistics.mean(seeds) for seeds in values]
        left.bar(places + offset, means, 0.25, color=color, label=label)
        for place, mean in zip(places + offset, means, strict=True):
            inside = mean > 25  # where the line of the dense network does not cross the figure
            style = {"va": "top", "color": "white" if kind == "" else "black"} if inside else {"va": "bottom"}
            left.text(place, mean + (-2 if inside else 1), f"{mean:.1f}", ha="center", fontsize=9, **style)
    dense = 100 * runs[0]["dense_test_accuracy"]
    left.axhline(dense, color="#1b232c", linestyle="--", linewidth=1)
    left.text(len(DRAWN_DENSITIES) - 0.52, dense + 1.5, f"dense {dense:.2f}", ha="right", fontsize=9)
    kept = {run["density"]: run["kept"] for run in runs}
    labels = [f"{100 * density:g} % kept\n{kept[density]:,} branches" for density in DRAWN_DENSITIES]
    left.set(
        xticks=places,
        xticklabels=labels,
        ylim=(0, 118),
        yticks=[],
        title="MNIST test accuracy (%), weights never changed",
    )
    left.legend(frameon=False, ncols=3, loc="upper left", fontsize=9, bbox_to_anchor=(0, 1.0))
    with np.load(RESULTS / "masks.npz") as arrays:
        first = arrays[arrays.files[0]]
    counts = first.sum(1).reshape(28, 28)
    colors = matplotlib.colormaps["viridis"].with_extremes(under="#eceff2")
    right.imshow(counts, colors, vmin=0.5, interpolation="nearest")
    right.set(
        xticks=[],
        yticks=[],
        title=f"{np.count_nonzero(counts)} of 784 pixels still\nfeed the {kept[DRAWN_DENSITIES[-1]]} branches",
    )
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(RESULTS / "mlpnet_mnist.png", metadata={"Software": None})


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"speed": measure_speed, "batching": measure_batching, "export": measure_export}
    parser.add_argument("what", choices=["accuracy", "random", *measures, "compare", "readme"])
    parser.add_argument("--configs", default=",".join(CONFIGS), help="of `accuracy`")
    parser.add_argument("--densities", default="", help="of `accuracy` and `random`, as the following")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.what == "readme":
        draw(json.loads((RESULTS / "accuracy.json").read_text()))
        for path, text in written_anew().items():
            path.write_text(text)
        return
    RESULTS.mkdir(exist_ok=True)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.what == "accuracy":
        configs = arguments.configs.split(",")
        if unknown := set(configs) - set(CONFIGS):
            parser.error(f"unknown config {min(unknown)}; configs: {', '.join(CONFIGS)}")
        given = arguments.densities or ",".join(map(str, DENSITIES))
        densities = [float(density) for density in given.split(",")]
        measure_accuracy(RESULTS / "accuracy.json", CONFIGS, configs, densities, seeds, arguments.jobs)
        return
    if arguments.what == "random":
        given = arguments.densities or ",".join(map(str, RANDOM_DENSITIES))
        densities, configs = [float(density) for density in given.split(",")], [RANDOM_CONFIG]
        measure_accuracy(RESULTS / "random.json", configs, configs, densities, seeds, arguments.jobs)
        return
    if arguments.what == "compare":
        measure_comparisons(arguments.jobs)
        return
    try:
        result = measures[arguments.what]() | {"machine": bench.machine()}
    except InputError as error:
        raise SystemExit(f"results: {error}") from None
    write(RESULTS / f"{arguments.what}.json", result)


if __name__ == "__main__":
    main()
