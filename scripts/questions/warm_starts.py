"""Where score search starts at each density of a sweep: measuring, table."""

import dataclasses
import json
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax import pruning
from sa_jax.commands.run import runner
from sa_jax.commands.run.evaluation import accuracy
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import masks
from sa_jax.networks.energies import cross_entropy
from sa_jax.pruning import scores

DENSITIES, STEPS = (0.5, 0.2, 0.1, 0.05, 0.02), 4_000
# By the heads of their columns: the settings, the seeds, and whether each seed trains a network of its own.
CASES = {
    "digits, 64-32-16-10, 8 networks": (
        RunConfig(hidden=(32, 16), num_steps=200_000, num_samples=1_000),
        range(8),
        True,
    ),
    "MNIST, MLPNet, 3 seeds": (
        RunConfig("mnist", 0.1307, 0.3081, "mlpnet_mnist_93.97.npz"),
        range(3),
        False,
    ),
}
STARTS = ("largest weights", "scores of the density before")


def measure() -> dict[str, Any]:
    """Searches masks from both starts, and measures their accuracy on the validation split."""
    cases = {name: measure_case(*case) for name, case in CASES.items()}
    print(json.dumps(cases, indent=1))
    return {"steps": STEPS, "cases": cases}


def measure_case(base: RunConfig, seeds: range, own_networks: bool) -> list[dict[str, Any]]:
    """The validation accuracy after score search, for each seed, density and start."""
    dataset = datasets.load_dataset(base.dataset, base.input_mean, base.input_std)
    x, y = map(jnp.asarray, dataset.train)
    search, network, found = jax.jit(_search, static_argnums=5), None, []
    for seed in seeds:
        config = dataclasses.replace(base, seed=seed)
        if network is None or own_networks:
            _, network = runner.load_network(config, dataset)
        key, before = jax.random.fold_in(jax.random.key(seed), 3), None
        for density in DENSITIES:
            num_kept = masks.num_kept(density, network.total)
            few, _ = config.sizes(num_kept, len(y))
            scale, _ = jax.jit(partial(_scale, config, num_kept))(network, x[:few], y[:few])
            for start in STARTS:
                state = scores.init(network)
                if start != STARTS[0] and before is not None:
                    state = state._replace(scores=_in_deviations(before))
                state = search(key, state, network, x, (y, scale), num_kept)
                mask = scores.mask_of(state, num_kept)
                reached = accuracy(network, mask, dataset.validation, config.activation)
                found.append({"seed": seed, "density": density, "start": start, "validation_accuracy": reached})
            before = state.scores  # of the search from the scores before
    return found


def _search(key, state, network, x, targets, num_kept):
    y, scale = targets
    settings = scores.ScoreSettings(STEPS, "forward")
    return scores.run(key, state, network, x, y, num_kept, cross_entropy(scale), "relu", settings, 0, STEPS)


def _scale(config, num_kept, network, x, y):
    return pruning.calibrated_search(network, x, y, num_kept, config.options)


def _in_deviations(found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    deviation = masks.flatten(found).std()
    return tuple(one / deviation for one in found)


def table(result: dict[str, Any]) -> str:
    """The mean validation accuracies in per cent, from the largest weights and from the scores before."""
    lines = ["| branches kept | " + " | ".join(result["cases"]) + " |", "|---|" + "---|" * len(result["cases"])]
    for density in DENSITIES[1:]:
        cells = []
        for rows in result["cases"].values():
            means = [
                statistics.mean(
                    row["validation_accuracy"]
                    for row in rows
                    if row["density"] == density and row["start"] == start
                )
                for start in STARTS
            ]
            cells.append(" and ".join(f"{100 * mean:.1f}" for mean in means))
        lines.append(f"| {100 * density:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)
