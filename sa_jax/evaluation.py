"""What annealing gave, and what it is worth: accuracies of the mask and of what it is compared with."""

import importlib.metadata
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import data, masks, models
from sa_jax.models import Network
from sa_jax.pruning import Problem
from sa_jax.settings import RunConfig

# Random masks whose accuracy is averaged for comparison.
RANDOM_MASKS = 10


class Annealed(NamedTuple):
    """What annealing all chains gave.

    Attributes:
      mask: the best of all chains, flat, bool `[total]`.
      weights: the weights beside it where they moved, float32 `[total]`, else None.
      problem: what was annealed.
      start_energy: of the initial mask.
      best_energy: of each chain, float32 `[chains]`.
      num_accepted: of each chain, int32 `[chains]`.
      num_samples: in the energy.
      num_steps: proposals of each chain.
      trace: arrays by name; `step` and `temperature` `[entries]`, `energy`, `best_energy` and `acceptance`
        (since the entry before) `[chains, entries]`.
      memory_bytes: what the programs need, over all devices of a CPU or on one of an accelerator; 0 if unknown.
      chain_batch: chains vmapped together.
      compile_seconds: wall time.
      anneal_seconds: wall time.
      cpu_seconds: CPU time over compiling and annealing, all threads.
    """

    mask: np.ndarray
    weights: np.ndarray | None
    problem: Problem
    start_energy: float
    best_energy: np.ndarray
    num_accepted: np.ndarray
    num_samples: int
    num_steps: int
    trace: dict[str, np.ndarray]
    memory_bytes: int
    chain_batch: int
    compile_seconds: float
    anneal_seconds: float
    cpu_seconds: float


def network_with(network: Network, weights: np.ndarray | None) -> Network:
    """The network with the weights that go with a mask, float32 `[total]`; the same if they are None."""
    if weights is None:
        return network
    return network._replace(kernels=tuple(masks.unflatten(jnp.asarray(weights), network.shapes)))


def evaluate(
    config: RunConfig, dataset: data.Dataset, network: Network, found: Network, annealed: Annealed, kept: int
) -> dict[str, Any]:
    """Measures the best mask and its baselines, and collects what `result.json` holds.

    `found` has the weights that go with the mask: those of `network` unless they moved.
    """
    predict = jax.jit(
        lambda network, mask, x: models.forward(models.masked(network, mask), x, config.activation).argmax(-1)
    )

    def on(split: data.Split, mask: jax.Array, network: Network = network) -> float:
        return float(np.mean(np.asarray(predict(network, mask, split.inputs)) == split.labels))

    mask = jnp.asarray(annealed.mask)
    random_key = jax.random.fold_in(jax.random.key(config.seed), 2)
    random_masks = [masks.random(key, network.total, kept) for key in jax.random.split(random_key, RANDOM_MASKS)]
    magnitude = masks.by_score(jnp.abs(masks.flatten(network.kernels)), kept)
    kept_per_layer = [int(m.sum()) for m in masks.unflatten(mask, network.shapes)]
    acceptance = float(annealed.num_accepted.mean() / annealed.num_steps)
    warnings = []
    if kept < network.total:
        warnings += search_warnings(acceptance, annealed.best_energy.min() < annealed.start_energy)
    if config.weights not in ("random", "pretrain") and list(config.hidden) != network.sizes[1:-1]:
        warnings.append(f"HIDDEN = {list(config.hidden)} was not used: the weights file has {network.sizes[1:-1]}")
    problem = annealed.problem
    return {
        "dataset": dataset.name,
        "sizes": network.sizes,
        "activation": config.activation,
        "weights": config.weights,
        "density": config.density,
        "kept": sum(kept_per_layer),
        "total": network.total,
        "kept_per_layer": kept_per_layer,
        "total_per_layer": [inputs * outputs for inputs, outputs in network.shapes],
        "start_energy": annealed.start_energy,
        "best_energy": float(annealed.best_energy.min()),
        "best_energy_per_chain": [float(energy) for energy in annealed.best_energy],
        "test_accuracy": on(dataset.test, mask, found),
        "validation_accuracy": on(dataset.validation, mask, found),
        "dense_test_accuracy": on(dataset.test, jnp.ones(network.total, bool)),
        "magnitude_test_accuracy": on(dataset.test, magnitude),
        "random_test_accuracy": float(np.mean([on(dataset.test, random) for random in random_masks])),
        "acceptance": acceptance,
        "num_samples": annealed.num_samples,
        "num_steps": annealed.num_steps,
        "num_chains": config.num_chains,
        "steps_per_second": annealed.num_steps / annealed.anneal_seconds,
        "proposals_per_second": config.num_chains * annealed.num_steps / annealed.anneal_seconds,
        "chain_batch": annealed.chain_batch,
        "memory_bytes": annealed.memory_bytes,
        "compile_seconds": annealed.compile_seconds,
        "anneal_seconds": annealed.anneal_seconds,
        "cpu_seconds": annealed.cpu_seconds,
        "seed": config.seed,
        "energy": config.energy,
        "logit_scale": float(problem.logit_scale),
        "move": config.move,
        "uses_gradients": config.move == "informed" or config.nudge_share > 0,
        "moves_weights": config.nudge_share > 0,
        "nudge_share": config.nudge_share,
        "start": config.start,
        "schedule": config.schedule
        if isinstance(config.schedule, str)
        else getattr(config.schedule, "__name__", "callable"),
        "temperature_start": float(problem.temperature_start),
        "temperature_end": float(problem.temperature_end),
        "warnings": warnings,
        "devices": [str(device) for device in jax.local_devices()],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("sa_jax", "jax", "jaxlib", "flax", "numpy")},
        },
    }


def search_warnings(acceptance: float, improved: bool) -> list[str]:
    """What the figures of a finished search say against its settings.

    >>> search_warnings(0.2, True), search_warnings(1e-7, False)
    ([], ['a share of 1e-07 of the proposals was accepted: the temperatures are too low'])
    """
    accepted = f"a share of {acceptance:.2g} of the proposals was accepted"
    if acceptance < 1e-4:
        return [f"{accepted}: the temperatures are too low"]
    if acceptance > 0.95:
        return [f"{accepted}: the temperatures are too high"]
    return [] if improved else ["no mask was better than the initial one: too few steps, or too high temperatures"]
