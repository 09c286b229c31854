"""What annealing gave, and what it is worth: accuracies of the mask and of what it is compared with."""

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import baselines
from sa_jax.commands.run.chains import Annealed
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from sa_jax.networks.mlp import Network

# Random masks whose accuracy is averaged for comparison.
RANDOM_MASKS = 10
# Training samples that one-shot scores are taken from.
ONE_SHOT_SAMPLES = 1_000
# The one-shot masks that annealing is compared with, and what they are called in a sentence.
ONE_SHOT = {
    "magnitude_global": "global magnitude",
    "magnitude_layerwise": "magnitude by layer",
    "magnitude_erk": "magnitude by ERK",
    "wanda_global": "global Wanda",
    "wanda_per_output": "Wanda by unit",
    "snip": "SNIP",
    "obd": "OBD",
}
SECONDS = ("compile_seconds", "anneal_seconds", "cpu_seconds")
# As many samples right as wanted are enough, whatever the last digit of their share.
ROUNDING = 1e-9


class Probe(NamedTuple):
    """An annealing run at one density of a search.

    Attributes:
      density: kept / total.
      kept: branches.
      validation_accuracy: of its best mask.
      compile_seconds: wall time.
      anneal_seconds: wall time.
      cpu_seconds: as in `Annealed`.
    """

    density: float
    kept: int
    validation_accuracy: float
    compile_seconds: float
    anneal_seconds: float
    cpu_seconds: float


class Search(NamedTuple):
    """A search for the sparsest density that reaches an accuracy.

    Attributes:
      target_accuracy: on the validation split.
      probes: in the order they were made.
    """

    target_accuracy: float
    probes: tuple[Probe, ...] = ()

    def passes(self, validation_accuracy: float) -> bool:
        """Whether an accuracy reaches the target."""
        return validation_accuracy >= self.target_accuracy - ROUNDING


def network_with(network: Network, weights: np.ndarray | None) -> Network:
    """The network with the weights that go with a mask, float32 `[total]`; the same if they are None."""
    if weights is None:
        return network
    return network._replace(kernels=tuple(masks.unflatten(jnp.asarray(weights), network.shapes)))


def accuracy(network: Network, mask: jax.Array, split: datasets.Split, activation: str) -> float:
    """The share of a split's samples that a masked network labels right; `mask` is flat, bool `[total]`."""
    return float(np.mean(np.asarray(_predict(network, mask, split.inputs, activation)) == split.labels))


@partial(jax.jit, static_argnums=3)
def _predict(network, mask, x, activation):
    return mlp.forward(mlp.masked(network, mask), x, activation).argmax(-1)


def one_shot_masks(
    network: Network, x: jax.Array, y: jax.Array, kept: int, activation: str = "relu"
) -> dict[str, jax.Array]:
    """Masks from one score of each branch, by the names of `ONE_SHOT`; no weight changes.

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
    """
    budget = baselines.DEFAULT_BUDGET._replace(num_samples=len(x))
    task = baselines.Task(jax.random.key(0), network, x, y, kept, activation, budget=budget)
    return {name: baselines.METHODS[name].find(task).mask for name in ONE_SHOT}


def worth_sentence(
    gain: float,
    best_name: str,
    cpu_seconds: float,
    density: float,
    keeps_dense: bool,
    tolerance: float,
    sparsest: float | None = None,
    moves_weights: bool = False,
) -> str:
    """Says in one sentence whether annealing was worth it.

    Args:
      gain: its test accuracy less that of the best one-shot mask with as many branches.
      best_name: of that mask's method.
      cpu_seconds: that annealing took.
      density: kept / total, of both.
      keeps_dense: whether the dense network's accuracy is kept, less the tolerance.
      tolerance: likewise, as a share of the samples.
      sparsest: where several densities were tried, the sparsest that keeps it on the validation split.
      moves_weights: whether annealing moved weights.

    >>> import textwrap
    >>> print(textwrap.fill(worth_sentence(0.041, "OBD", 12.3, 0.1, True, 0.005)))
    At 10 % of the branches annealing gained 4.10 points of test accuracy
    over the best one-shot mask (OBD), for 12 s of CPU time; the dense
    accuracy is kept within 0.5 points at this density.
    >>> print(textwrap.fill(worth_sentence(-0.002, "SNIP", 3.21, 0.5, False, 0.01)))
    Annealing was not worth it at 50 % of the branches: it lost 0.20
    points of test accuracy to the best one-shot mask (SNIP), for 3.2 s of
    CPU time; the dense accuracy is not kept within 1 point at this
    density.
    """
    points, share = round(100 * gain, 2), f"{100 * density:.3g} % of the branches"
    if points > 0:
        verdict = f"At {share} annealing gained {points:.2f} points of test accuracy over"
    elif points < 0:
        verdict = f"Annealing was not worth it at {share}: it lost {-points:.2f} points of test accuracy to"
    else:
        verdict = f"Annealing was not worth it at {share}: it gained no test accuracy over"
    weights = ", with the weights as they were, which annealing moved" if moves_weights else ""
    seconds = f"{cpu_seconds:,.0f}" if cpu_seconds >= 10 else f"{cpu_seconds:.1f}"
    within = f"within {100 * tolerance:g} point{'' if tolerance == 0.01 else 's'}"
    if sparsest is not None:
        where = "this density" if sparsest == density else f"{100 * sparsest:.3g} % of the branches"
        dense = f"on validation samples the dense accuracy is kept {within} down to {where}"
    else:
        dense = f"the dense accuracy is {'' if keeps_dense else 'not '}kept {within} at this density"
    return f"{verdict} the best one-shot mask ({best_name}{weights}), for {seconds} s of CPU time; {dense}."


def evaluate(
    config: RunConfig,
    dataset: datasets.Dataset,
    network: Network,
    found: Network,
    annealed: Annealed,
    search: Search | None = None,
) -> dict[str, Any]:
    """Measures the best mask and its baselines, and collects what `result.json` holds.

    Args:
      config: the settings.
      dataset: the splits; the best one-shot mask is chosen on the validation split.
      network: the dense network.
      found: has the weights that go with the mask: those of `network` unless they moved.
      annealed: what annealing gave.
      search: the search for the density, if there was one.
    """
    mask, dense = jnp.asarray(annealed.mask), jnp.ones(network.total, bool)
    kept_per_layer = [int(m.sum()) for m in masks.unflatten(mask, network.shapes)]
    kept = sum(kept_per_layer)
    random_key = jax.random.fold_in(jax.random.key(config.seed), 2)
    random_masks = [masks.random(key, network.total, kept) for key in jax.random.split(random_key, RANDOM_MASKS)]

    def on_test(mask: jax.Array, network: Network = network) -> float:
        return accuracy(network, mask, dataset.test, config.activation)

    def on_validation(mask: jax.Array, network: Network = network) -> float:
        return accuracy(network, mask, dataset.validation, config.activation)

    x, y = (jnp.asarray(array[:ONE_SHOT_SAMPLES]) for array in dataset.train)
    one_shot = one_shot_masks(network, x, y, kept, config.activation)
    best_one_shot = max(one_shot, key=lambda name: on_validation(one_shot[name]))
    one_shot_accuracy = {name: on_test(mask) for name, mask in one_shot.items()}
    acceptance = float(annealed.num_accepted.mean() / annealed.num_steps)
    warnings = []
    if kept < network.total:
        warnings += search_warnings(acceptance, annealed.best_energy.min() < annealed.start_energy)
    if config.weights not in ("random", "pretrain") and list(config.hidden) != network.sizes[1:-1]:
        warnings.append(f"HIDDEN = {list(config.hidden)} was not used: the weights file has {network.sizes[1:-1]}")
    if search is not None and not any(search.passes(probe.validation_accuracy) for probe in search.probes):
        wanted = f"the wanted validation accuracy, {100 * search.target_accuracy:.2f} %"
        warnings.append(f"no density tried reached {wanted}: this is the nearest")
    problem = annealed.problem
    runs = [annealed] if search is None else search.probes
    result = {
        "dataset": dataset.name,
        "data": config.dataset,
        "input_mean": config.input_mean,
        "input_std": config.input_std,
        "sizes": network.sizes,
        "activation": config.activation,
        "weights": config.weights,
        "density": kept / network.total if config.density is None else config.density,
        "kept": kept,
        "total": network.total,
        "effective_kept": int(masks.effective(mask, network.shapes).sum()),
        "kept_per_layer": kept_per_layer,
        "total_per_layer": [inputs * outputs for inputs, outputs in network.shapes],
        "start_energy": annealed.start_energy,
        "best_energy": float(annealed.best_energy.min()),
        "best_energy_per_chain": [float(energy) for energy in annealed.best_energy],
        "not_finite_proposals": int(annealed.num_not_finite.sum()),
        "max_energy_drift": None if np.isnan(annealed.max_drift) else annealed.max_drift,
        "best_energy_spread": float(np.ptp(annealed.best_energy)),
        "mask_overlap": _overlap(annealed) if config.num_chains > 1 else None,
        "test_accuracy": on_test(mask, found),
        "validation_accuracy": on_validation(mask, found),
        "dense_test_accuracy": on_test(dense),
        "dense_validation_accuracy": on_validation(dense),
        "magnitude_test_accuracy": one_shot_accuracy["magnitude_global"],
        "random_test_accuracy": float(np.mean([on_test(random) for random in random_masks])),
        "one_shot_test_accuracy": one_shot_accuracy,
        "best_one_shot": best_one_shot,
        "tolerance": config.tolerance,
        "target_accuracy": None if search is None else search.target_accuracy,
        "probes": [] if search is None else [probe._asdict() for probe in search.probes],
        "acceptance": acceptance,
        "num_samples": annealed.num_samples,
        "num_steps": annealed.num_steps,
        "num_chains": config.num_chains,
        "steps_per_second": annealed.num_steps / annealed.anneal_seconds,
        "proposals_per_second": config.num_chains * annealed.num_steps / annealed.anneal_seconds,
        "chain_batch": annealed.chain_batch,
        "memory_bytes": annealed.memory_bytes,
        **{name: sum(getattr(run, name) for run in runs) for name in SECONDS},
        "seconds_cover": "annealing" if search is None else f"annealing, all {len(runs)} probes together",
        "seed": config.seed,
        "energy": config.energy,
        "logit_scale": float(problem.logit_scale),
        "move": config.move,
        "uses_gradients": config.uses_gradients,
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
    return result | {"worth": _worth(result)}


def _overlap(annealed: Annealed) -> dict[str, float]:
    start = np.asarray(annealed.problem.mask)
    with_start = float(np.mean([masks.jaccard(mask, start) for mask in annealed.masks]))
    return masks.overlap(annealed.masks)._asdict() | {"jaccard_with_start": with_start}


def _worth(result: Mapping[str, Any]) -> str:
    gain = result["test_accuracy"] - result["one_shot_test_accuracy"][result["best_one_shot"]]
    keeps_dense = result["test_accuracy"] >= result["dense_test_accuracy"] - result["tolerance"] - ROUNDING
    least = result["dense_validation_accuracy"] - result["tolerance"] - ROUNDING
    keeping = [probe["density"] for probe in result["probes"] if probe["validation_accuracy"] >= least]
    return worth_sentence(
        gain,
        ONE_SHOT[result["best_one_shot"]],
        result["cpu_seconds"],
        result["density"],
        keeps_dense,
        result["tolerance"],
        min(keeping, default=None),
        result["moves_weights"],
    )


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
