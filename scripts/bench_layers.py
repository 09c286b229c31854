"""Measures how fast linear layers are annealed, and a compiled annealer; saves scripts/results/layers.json.

    python scripts/bench_layers.py           # 5 layer sizes, 1 and 2 cores, half precision; 6 minutes
    pip install dwave-samplers               # optional: its annealer of binary variables is measured in turns

Synthetic layers from fixed seeds, with correlated inputs; half of each row is kept. Rows are independent, so a
part of the rows is enough for large layers. A draw of the heat bath weighs every place that a branch could move
to. Each place is a proposal that another annealer would make one by one, so both draws and proposals are counted.
dwave-samplers flips single variables, without an exact count of ones: its figure is the number of flips tried, on
the same rows as a quadratic form.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.commands.bench import proposals
from sa_jax.networks.patterns import Unit
from sa_jax.pruning.gram import layer_error
from sa_jax.pruning.linear import prune_linear_sharded, whole_steps

RESULTS = Path(__file__).resolve().parent / "results"
# Outputs and inputs of each layer; rows measured; sweeps.
LAYERS = (
    (384, 384, 384, 1.0),
    (1536, 384, 384, 1.0),
    (384, 1536, 64, 1.0),
    (4096, 4096, 64, 0.1),
    (11008, 4096, 64, 0.1),
)
DENSITY, ROUNDS = 0.5, 5
# Reads and sweeps of dwave-samplers per measurement.
FLIP_READS, FLIP_SWEEPS = 8, 1_000
# Linear layers of a transformer of 7 billion weights (LLaMA-7B; Touvron et al. 2023): outputs, inputs, how many.
LARGE_MODEL = ((4096, 4096, 4 * 32), (11008, 4096, 2 * 32), (4096, 11008, 32))
# Memory bandwidth of an H100, from its data sheet.
ACCELERATOR_BYTES_PER_SECOND = 3.35e12


def synthesize(rows: int, inputs: int) -> tuple[jax.Array, jax.Array]:
    """Returns a weight and the Gram matrix of correlated inputs, whose largest entry is 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    mix = jax.random.normal(keys[0], (inputs, inputs)) / inputs**0.5
    x = jax.random.normal(keys[1], (2 * inputs, inputs)) @ mix
    gram = x.T @ x
    return jax.random.normal(keys[2], (rows, inputs)), gram / jnp.abs(gram).max()


def flips(weight: np.ndarray, gram: np.ndarray) -> Any:
    """Returns a function that anneals one row by dwave-samplers; None where that is not installed."""
    try:
        import dimod  # pyright: ignore[reportMissingImports]
        from dwave.samplers import SimulatedAnnealingSampler  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    # The error of pruning variables that are 1: a quadratic form of the row's weights.
    form = np.asarray(gram) * np.outer(weight[0], weight[0])
    model = dimod.BinaryQuadraticModel(form.astype(float), "BINARY")
    sampler = SimulatedAnnealingSampler()

    def run() -> tuple[float, int]:
        found = sampler.sample(model, num_reads=FLIP_READS, num_sweeps=FLIP_SWEEPS, seed=0)
        # Building the problem and sorting the results is not annealing.
        return found.info["timing"]["sampling_ns"] / 1e9, FLIP_READS * FLIP_SWEEPS * len(form)

    return run


def measure(cores: int) -> list[dict[str, Any]]:
    """Measures all layers on this number of cores, with the methods in turns."""
    jax.config.update("jax_num_cpu_devices", cores)
    rows = []
    for outputs, inputs, measured, sweeps in LAYERS:
        weight, gram = synthesize(measured, inputs)
        num_kept = round(DENSITY * inputs)
        draws = measured * whole_steps(sweeps * inputs)

        def anneal(gram, weight=weight, sweeps=sweeps):
            start = time.perf_counter()
            mask = prune_linear_sharded(jax.random.key(0), weight, gram, Unit(DENSITY), sweeps)
            mask.block_until_ready()
            return time.perf_counter() - start, mask

        grams = {"float32": gram, "float16": gram.astype(jnp.float16)}
        other = flips(np.asarray(weight), np.asarray(gram)) if (inputs, cores) == (384, 1) else None
        seconds: dict[str, list[float]] = {name: [] for name in grams}
        flipped = []
        masks = {name: anneal(gram)[1] for name, gram in grams.items()}  # compiles
        for _ in range(ROUNDS):
            for name, values in grams.items():
                seconds[name].append(anneal(values)[0])
            if other:
                taken, tried = other()
                flipped.append(tried / taken)
        errors = {
            name: float(layer_error(weight, gram, jnp.where(mask, weight, 0))) for name, mask in masks.items()
        }
        for name, taken in seconds.items():
            rate = draws / statistics.median(taken)
            row = {
                "outputs": outputs,
                "inputs": inputs,
                "rows_measured": measured,
                "cores": cores,
                "gram": name,
                "draws_per_second": rate,
                "proposals_per_second": rate * (inputs - num_kept + 1),
                "least": draws / max(taken),
                "most": draws / min(taken),
                "gram_bytes_per_second": rate * 2 * inputs * jnp.dtype(name).itemsize,
                "layer_error": errors[name],
                "same_choices": float((masks[name] == masks["float32"]).mean()),
                "flips_per_second": statistics.median(flipped) if flipped and name == "float32" else None,
            }
            rows.append(row)
            print(
                f"{outputs}x{inputs} {name} {cores} cores: {rate:,.0f} draws, "
                f"{row['proposals_per_second'] / 1e6:,.0f} million proposals a second",
                file=sys.stderr,
            )
    return rows


def forecast() -> dict[str, float]:
    """Returns the bytes that one sweep of a large model moves, and the least time on an accelerator."""
    draws = sum(outputs * inputs * count for outputs, inputs, count in LARGE_MODEL)
    moved = sum(outputs * inputs * count * 2 * inputs * 2 for outputs, inputs, count in LARGE_MODEL)
    largest = max(inputs for _, inputs, _ in LARGE_MODEL)
    return {
        "weights": draws,
        "bytes_per_sweep_float16": moved,
        "hours_at_memory_bandwidth": moved / ACCELERATOR_BYTES_PER_SECOND / 3600,
        "largest_gram_bytes_float16": 2 * largest**2,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, help="measure on this number of cores, and print JSON")
    cores = parser.parse_args().cores
    if cores:
        print(json.dumps(measure(cores)))
        return
    available = sorted(os.sched_getaffinity(0))
    rows = []
    for cores in (1, 2)[: len(available)]:
        command = [
            "taskset",
            "-c",
            ",".join(map(str, available[:cores])),
            sys.executable,
            __file__,
            f"--cores={cores}",
        ]
        environment = os.environ | dict.fromkeys(("NPROC", "OMP_NUM_THREADS"), str(cores))
        rows += json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
    result = {"density": DENSITY, "rounds": ROUNDS, "rows": rows, "forecast": forecast()}
    result |= {"ceilings": proposals.measure_ceilings(), "machine": proposals.machine()}
    (RESULTS / "layers.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
