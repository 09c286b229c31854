"""How near annealing comes to the optimum: against all masks where they are few, else chain against chain.

    python scripts/optimum.py enumerated   # success and gap by budget, on networks small enough; 2 minutes
    python scripts/optimum.py chains       # MLPNet, 4 chains, 3 densities: energies and overlap; 10 minutes

Both save their figures, with machine and versions, in scripts/results/; `enumerated` draws optimum.png beside
them. `scripts/results.py readme` writes what README.md says of them.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import anneal, constant_schedule, geometric_schedule
from sa_jax.commands.bench import proposals
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
NETWORKS = 100
# 4 inputs, 3 hidden units, 2 outputs: 18 branches, of which 7 are kept: 31,824 masks.
SIZES, KEPT = (4, 3, 2), 7
# Proposals of a descent before it is restarted: four for each swap of a mask here.
PATIENCE = 300
SPREAD_MASKS = 30
BUDGETS = (30, 100, 300, 1_000, 3_000, 10_000)
DENSITIES = (0.5, 0.1, 0.02)
CHAINS = 4


def enumerated() -> dict[str, Any]:
    """Success rate and gap of annealing, greedy descent and random search, by evaluations of the energy.

    Each network has random weights and a random linear teacher; the energy is the squared error to it, the start a
    random mask, the moves uniform swaps, the temperatures shares of the spread of 30 random masks' energies, which
    are not counted. Greedy descent is annealing at temperature 0; 'restarted' starts again at a random mask after
    every `PATIENCE` proposals, and keeps the best. The gap is that of the lowest
    energy met to the optimum, as a share of what lies between the optimum and the mean of all masks.
    """
    shapes = list(itertools.pairwise(SIZES))
    total = sum(inputs * outputs for inputs, outputs in shapes)
    kept_branches = np.array(list(itertools.combinations(range(total), KEPT)))
    all_masks = np.zeros((len(kept_branches), total), bool)
    np.put_along_axis(all_masks, kept_branches, True, axis=1)

    def squared_error(outputs, target, axis):
        del axis
        return ((outputs - target) ** 2).mean()

    @jax.jit
    def energies_of(kernels, samples):
        landscape = masked_mlp(mlp.Network(kernels, (None, None)), uniform_swap(), squared_error)
        return jax.lax.map(lambda mask: landscape.init(mask, samples).energy, all_masks, batch_size=1_024)

    def search(name, budget):
        @jax.jit
        def solve(key, kernels, mask, samples, spread):
            landscape = masked_mlp(mlp.Network(kernels, (None, None)), uniform_swap(), squared_error)
            if name == "annealing":
                schedule = geometric_schedule(0.3 * spread, 0.003 * spread, budget)
                return anneal(key, landscape, mask, schedule, budget, samples).best_energy
            steps = min(PATIENCE, budget) if name == "restarted" else budget

            def descend(key):
                mask_key, chain_key = jax.random.split(key)
                start = masks.random(mask_key, total, KEPT)
                return anneal(chain_key, landscape, start, constant_schedule(0.0), steps, samples).best_energy

            return jax.lax.map(descend, jax.random.split(key, budget // steps)).min()

        return solve

    problems = []
    for seed in range(NETWORKS):
        keys = jax.random.split(jax.random.key(seed), 6)
        kernels = tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
        x = jax.random.normal(keys[2], (40, SIZES[0]))
        samples = x.T, (x @ jax.random.normal(keys[3], (SIZES[0], SIZES[-1]))).T
        energies = np.asarray(energies_of(kernels, samples))
        problems.append((keys[4], kernels, masks.random(keys[5], total, KEPT), samples, energies))
    rows = []
    for budget in BUDGETS:
        for name in ("annealing", "greedy", "restarted", "random"):
            gaps = []
            solve = None if name == "random" else search(name, budget)
            for seed, (key, kernels, mask, samples, energies) in enumerate(problems):
                if solve is None:
                    drawn = np.random.default_rng(seed).integers(len(energies), size=budget)
                    lowest = energies[drawn].min()
                else:
                    spread = np.random.default_rng(seed).choice(energies, SPREAD_MASKS).std()
                    lowest = float(solve(key, kernels, mask, samples, jnp.float32(spread)))
                gaps.append((lowest - energies.min()) / (energies.mean() - energies.min()))
            found = float(np.mean(np.array(gaps) < 1e-4))
            rows.append({"search": name, "budget": budget, "found": found, "mean_gap": float(np.mean(gaps))})
            print(
                f"{name:10}{budget:7,} evaluations: optimum found {found:.0%}, mean gap {np.mean(gaps):.2%}",
                flush=True,
            )
    return {"networks": NETWORKS, "sizes": list(SIZES), "kept": KEPT, "masks": len(all_masks), "rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Success rate and mean gap against the budget."""
    from matplotlib.figure import Figure

    figure = Figure((8.4, 3.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    colors = {"annealing": "#0072b2", "greedy": "#d55e00", "restarted": "#e69f00", "random": "#808890"}
    labels = {"greedy": "greedy descent", "restarted": "greedy, restarted", "random": "random search"}
    for name, color in colors.items():
        rows = [row for row in result["rows"] if row["search"] == name]
        budgets = [row["budget"] for row in rows]
        left.plot(
            budgets, [100 * row["found"] for row in rows], "-o", color=color, ms=4, label=labels.get(name, name)
        )
        right.plot(budgets, [100 * row["mean_gap"] for row in rows], "-o", color=color, ms=4)
    left.set(ylabel="optimum found, % of networks", ylim=(0, 104))
    right.set(ylabel="mean gap to the optimum, %", ylim=(0, None))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="evaluations of the energy")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def chains() -> dict[str, Any]:
    """Runs configs/mlpnet_mnist_alone.gin with several chains, nothing else overridden but the density."""
    rows = []
    for density in DENSITIES:
        with tempfile.TemporaryDirectory() as workdir:
            command = [sys.executable, str(ROOT / "scripts/run.py"), "--gin_file=configs/mlpnet_mnist_alone.gin"]
            command += [f"--gin_bindings=DENSITY={density}", f"--gin_bindings=NUM_CHAINS={CHAINS}"]
            subprocess.run([*command, f"--workdir={workdir}/run"], check=True, cwd=ROOT)
            run = json.loads((Path(workdir) / "run/result.json").read_text())
        rows.append({name: run[name] for name in ("density", "kept", "best_energy_per_chain", "mask_overlap")})
    return {"chains": CHAINS, "rows": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["enumerated", "chains"])
    name, measure = {"enumerated": ("optimum", enumerated), "chains": ("chains", chains)}[parser.parse_args().what]
    result = measure() | {"machine": proposals.machine()}
    if name == "optimum":
        draw(result, RESULTS / "optimum.png")
    aside = RESULTS / f".{name}.json"
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()
