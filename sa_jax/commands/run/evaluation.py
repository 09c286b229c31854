"""Evaluates a finished run against baselines."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import baselines, pruning
from sa_jax.commands.hardware import versions
from sa_jax.commands.run import rival
from sa_jax.commands.run.records import Annealed
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from sa_jax.networks.mlp import Network

# Random masks whose accuracy is averaged for comparison.
RANDOM_MASKS = 10
# Training samples from which one-shot scores are computed.
ONE_SHOT_SAMPLES = 1_000
# The one-shot methods of `baselines.METHODS` with which annealing is compared.
ONE_SHOT = (
    "magnitude_global",
    "magnitude_layerwise",
    "magnitude_erk",
    "wanda_global",
    "wanda_per_output",
    "snip",
    "obd",
)
SECONDS = ("search_seconds", "compile_seconds", "anneal_seconds", "cpu_seconds")
# An accuracy equal to the target passes, whatever the last digit of the two floats.
ROUNDING = 1e-9


class Probe(NamedTuple):
    """An annealing run at one density of a search; the names of its fields are those in result.json.

    Attributes:
      density: kept / total.
      kept: number of branches kept.
      validation_accuracy: accuracy of its best mask.
      search_seconds: wall time of the score search; 0 if there was none.
      compile_seconds: wall time of compiling the chains.
      anneal_seconds: wall time of annealing.
      cpu_seconds: CPU time of all three, and of finding the initial mask by another method, all threads.
    """

    density: float
    kept: int
    validation_accuracy: float
    search_seconds: float
    compile_seconds: float
    anneal_seconds: float
    cpu_seconds: float


class Search(NamedTuple):
    """A search for the lowest density that reaches an accuracy.

    Attributes:
      target_accuracy: wanted accuracy on the validation split.
      probes: the annealing runs, in their order.
    """

    target_accuracy: float
    probes: tuple[Probe, ...] = ()

    def passes(self, validation_accuracy: float) -> bool:
        """Returns whether an accuracy reaches the target."""
        return validation_accuracy >= self.target_accuracy - ROUNDING


def network_with(network: Network, weights: np.ndarray | None) -> Network:
    """Returns the network with other weights, float32 `[total]`; unchanged where they are None."""
    if weights is None:
        return network
    return network._replace(kernels=tuple(masks.unflatten(jnp.asarray(weights), network.shapes)))


def accuracy(network: Network, mask: jax.Array, split: datasets.Split, activation: str) -> float:
    """Returns the accuracy of a masked network on a split; `mask` is flat, bool `[total]`."""
    return float(correct(network, mask, split, activation).mean())


def correct(network: Network, mask: jax.Array, split: datasets.Split, activation: str) -> np.ndarray:
    """Returns which samples of a split a masked network gets right, bool `[samples]`; `mask` as in `accuracy`."""
    return np.asarray(_predict(network, mask, split.inputs, activation)) == split.labels


@partial(jax.jit, static_argnums=3)
def _predict(network, mask, x, activation):
    return mlp.forward(mlp.masked(network, mask), x, activation).argmax(-1)


def standard_error(right: np.ndarray) -> float:
    """Returns the standard error of an accuracy, from the number of its samples.

    For one mask it is that of a binomial share `p` of `n` samples, the root of `p (1 - p) / n`.

    Args:
      right: which samples were predicted correctly, bool `[samples]`; or how often, float `[samples]`.

    >>> round(standard_error(np.arange(100) < 90), 4)  # the root of 0.9 * 0.1 / 100
    0.03
    """
    return float(np.std(right) / np.sqrt(len(right)))


class Difference(NamedTuple):
    """The difference of two accuracies on the same samples.

    Attributes:
      difference: accuracy of the first mask less that of the second.
      standard_error: its standard error, from the samples that only one of the masks gets right.
      only_first: number of samples that only the first mask gets right.
      only_second: number of samples that only the second mask gets right.
    """

    difference: float
    standard_error: float
    only_first: int
    only_second: int


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compares two masks on the same samples, as in the test of McNemar (1947).

    Args:
      first: which samples the first mask gets right, bool `[samples]`.
      second: which samples the second mask gets right, bool `[samples]`.

    >>> first, second = np.arange(100) < 90, np.arange(100) % 10 > 0
    >>> found = paired_difference(first, second)  # 9 samples against 9, of 100
    >>> found.only_first, found.only_second, round(found.standard_error, 4)
    (9, 9, 0.0424)
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    scores = first.astype(float) - second
    return Difference(float(scores.mean()), standard_error(scores), only_first, only_second)


def one_shot_masks(
    network: Network, x: jax.Array, y: jax.Array, num_kept: int, activation: str = "relu"
) -> dict[str, jax.Array]:
    """Returns the one-shot masks of `ONE_SHOT`, by name; no weight changes.

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
    """
    budget = baselines.DEFAULT_BUDGET._replace(num_samples=len(x))
    task = baselines.Task(jax.random.key(0), network, x, y, num_kept, activation, budget=budget)
    return {name: baselines.METHODS[name].find(task).mask for name in ONE_SHOT}


def worth_text(
    difference: float,
    error: float,
    strongest: str,
    cpu_seconds: float,
    density: float,
    keeps_dense: bool,
    tolerance: float,
    sparsest: float | None = None,
    moves_weights: bool = False,
    searched: bool = False,
    has_rival: bool = True,
) -> str:
    """Returns a few sentences on whether annealing was worth it.

    Args:
      difference: test accuracy of the annealed mask less that of the strongest other mask with as many branches.
      error: standard error of this difference.
      strongest: what found that other mask.
      cpu_seconds: CPU time that annealing took, and finding its initial mask.
      density: kept / total, of both masks.
      keeps_dense: whether the mask keeps the dense network's accuracy on the test split, within the tolerance.
      tolerance: loss of accuracy that still counts as none, as a share of the samples.
      sparsest: where several densities were tried, the lowest that keeps the dense network's accuracy on the
        validation split; None where there is none.
      moves_weights: whether annealing moved weights.
      searched: whether score search found the initial mask.
      has_rival: whether another search was measured too; else the others are one-shot masks alone.

    >>> import textwrap
    >>> print(textwrap.fill(worth_text(0.041, 0.008, "OBD, one-shot", 12.3, 0.1, True, 0.005)))
    At 10 % of the branches annealing gained 4.10 ± 0.80 points of test
    accuracy over the strongest other mask (OBD, one-shot). Annealing took
    12 s of CPU time. It keeps the accuracy of the dense network within
    0.5 points.
    >>> print(textwrap.fill(worth_text(-0.002, 0.003, "SNIP, one-shot", 3.21, 0.5, False, 0.01)))
    At 50 % of the branches annealing is level with the strongest other
    mask (SNIP, one-shot): the difference is -0.20 ± 0.30 points of test
    accuracy. Annealing took 3.2 s of CPU time. It does not keep the
    accuracy of the dense network within 1 point.
    """
    points, share = f"{100 * abs(difference):.2f} ± {100 * error:.2f} points", f"{100 * density:.3g} %"
    start, who = f"At {share} of the branches", "score search and annealing" if searched else "annealing"
    weights = ", which keeps the original weights, while annealing moved them" if moves_weights else ""
    other = f"the strongest {'other' if has_rival else 'one-shot'} mask ({strongest}{weights})"
    if abs(difference) <= error:
        are, signed = ("are" if searched else "is"), f"{100 * difference:+.2f} ± {100 * error:.2f} points"
        verdict = f"{start} {who} {are} level with {other}: the difference is {signed} of test accuracy"
    elif difference > 0:
        verdict = f"{start} {who} gained {points} of test accuracy over {other}"
    else:
        verdict = f"{start} it was not worth it: {who} lost {points} of test accuracy to {other}"
    seconds = f"{cpu_seconds:,.0f}" if cpu_seconds >= 10 else f"{cpu_seconds:.1f}"
    points_lost = f"{100 * tolerance:g} point{'' if tolerance == 0.01 else 's'}"
    within = f"the accuracy of the dense network within {points_lost}"
    if sparsest is not None:
        where = "this density" if sparsest == density else f"{100 * sparsest:.3g} % of the branches"
        dense = f"On validation samples it keeps {within} down to {where}"
    else:
        dense = f"It keeps {within}" if keeps_dense else f"It does not keep {within}"
    taken = f"{'Score search and annealing' if searched else 'Annealing'} took {seconds} s of CPU time"
    return f"{verdict}. {taken}. {dense}."


def evaluate(
    config: RunConfig,
    dataset: datasets.Dataset,
    network: Network,
    found: Network,
    annealed: Annealed,
    search: Search | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Measures the best mask and its baselines, and returns the content of `result.json`.

    Args:
      config: the settings.
      dataset: the splits; the best one-shot mask is chosen on the validation split.
      network: the dense network.
      found: the network with the weights that belong to the mask; `network` itself unless weights moved.
      annealed: the result of annealing.
      search: the search for the density; None if the density was given.
      stop: called between the runs of the rival; if it returns True, the best one so far counts.
    """
    mask, dense = jnp.asarray(annealed.mask), jnp.ones(network.total, bool)
    kept_per_layer = [int(m.sum()) for m in masks.unflatten(mask, network.shapes)]
    num_kept = sum(kept_per_layer)
    random_key = jax.random.fold_in(jax.random.key(config.seed), 2)
    random_keys = jax.random.split(random_key, RANDOM_MASKS)
    random_masks = [masks.random(key, network.total, num_kept) for key in random_keys]

    def on_test(mask: jax.Array, network: Network = network) -> float:
        return accuracy(network, mask, dataset.test, config.activation)

    def right(mask: jax.Array, network: Network = network) -> np.ndarray:
        return correct(network, mask, dataset.test, config.activation)

    def on_validation(mask: jax.Array, network: Network = network) -> float:
        return accuracy(network, mask, dataset.validation, config.activation)

    x, y = (jnp.asarray(array[:ONE_SHOT_SAMPLES]) for array in dataset.train)
    one_shot = one_shot_masks(network, x, y, num_kept, config.activation)
    best_one_shot = max(one_shot, key=lambda name: on_validation(one_shot[name]))
    one_shot_accuracy = {name: on_test(mask) for name, mask in one_shot.items()}
    free = "" if config.pattern is None else ", without the pattern"
    others = {f"{baselines.METHODS[best_one_shot].label}, one-shot{free}": one_shot[best_one_shot]}
    against = None
    if config.rival is not None:
        against = rival.find(config, network, dataset.train, annealed, on_validation, stop)
        others[f"{baselines.METHODS[config.rival].label}, in as much time{free}"] = against.mask
    # The last one of those with the same accuracy.
    strongest = max(reversed(others), key=lambda name: on_validation(others[name]))
    rights = {
        "test_accuracy": right(mask, found),
        "dense_test_accuracy": right(dense),
        "magnitude_test_accuracy": right(one_shot["magnitude_global"]),
        "random_test_accuracy": np.mean([right(random) for random in random_masks], axis=0),
        "best_one_shot_test_accuracy": right(one_shot[best_one_shot]),
    } | ({} if against is None else {"rival_test_accuracy": right(against.mask)})
    compared = paired_difference(rights["test_accuracy"], right(others[strongest]))
    acceptance = float(annealed.num_accepted.mean() / annealed.num_steps)
    warnings = []
    if num_kept < network.total:
        # After score search there may be nothing left to gain.
        improved = annealed.best_energy.min() < annealed.start_energy or annealed.searched is not None
        warnings += search_warnings(acceptance, improved)
    if search is not None and not any(search.passes(probe.validation_accuracy) for probe in search.probes):
        target = f"the target validation accuracy of {100 * search.target_accuracy:.2f} %"
        warnings.append(f"no density tried reached {target}: this result came closest")
    problem = annealed.problem
    runs = [annealed] if search is None else search.probes
    timed = "annealing" if annealed.searched is None else "score search and annealing"
    result = {
        "dataset": dataset.name,
        "data": config.dataset,
        "input_mean": config.input_mean,
        "input_std": config.input_std,
        "sizes": network.sizes,
        "activation": config.activation,
        "weights": config.weights,
        "density": num_kept / network.total if config.density is None else config.density,
        "kept": num_kept,
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
        "test_accuracy": float(rights["test_accuracy"].mean()),
        "test_accuracy_per_chain": _per_chain(annealed, on_test),
        "validation_accuracy": on_validation(mask, found),
        "dense_test_accuracy": float(rights["dense_test_accuracy"].mean()),
        "dense_validation_accuracy": on_validation(dense),
        "magnitude_test_accuracy": one_shot_accuracy["magnitude_global"],
        "random_test_accuracy": float(rights["random_test_accuracy"].mean()),
        "one_shot_test_accuracy": one_shot_accuracy,
        "best_one_shot": best_one_shot,
        "rival": None if against is None else _of_rival(against, on_validation, on_test),
        "strongest_other": {"name": strongest} | compared._asdict(),
        "num_validation_samples": len(dataset.validation.labels),
        "num_test_samples": len(dataset.test.labels),
        "standard_errors": {name: standard_error(of) for name, of in rights.items()},
        "tolerance": config.tolerance,
        "target_accuracy": None if search is None else search.target_accuracy,
        "probes": [] if search is None else [probe._asdict() for probe in search.probes],
        "acceptance": acceptance,
        "num_samples": annealed.num_samples,
        "num_steps": annealed.num_steps,
        "planned_steps": annealed.planned_steps,
        "num_chains": config.num_chains,
        "steps_per_second": annealed.num_steps / annealed.anneal_seconds,
        "proposals_per_second": config.num_chains * annealed.num_steps / annealed.anneal_seconds,
        "chain_batch": annealed.chain_batch,
        "memory_bytes": annealed.memory_bytes,
        **{name: sum(getattr(run, name) for run in runs) for name in SECONDS},
        "seconds_cover": timed if search is None else f"{timed}, all {len(runs)} probes together",
        "seed": config.seed,
        "energy": config.energy,
        "logit_scale": float(problem.logit_scale),
        "move": config.move,
        "uses_gradients": config.uses_gradients,
        "moves_weights": config.nudge_share > 0,
        "nudge_share": config.nudge_share,
        "start": config.start,
        "score_steps": 0 if annealed.searched is None else annealed.searched.num_steps,
        "scores_from": config.scores_from,
        "pattern": config.pattern,
        "estimates": config.estimates,
        "backend": pruning.described_backend(config.options),
        "patience": config.patience,
        "parts": _parts(annealed, found, on_validation, on_test),
        "schedule": config.schedule
        if isinstance(config.schedule, str)
        else getattr(config.schedule, "__name__", "callable"),
        "temperature_start": float(problem.temperature_start),
        "temperature_end": float(problem.temperature_end),
        "warnings": warnings,
        "devices": [str(device) for device in jax.local_devices()],
        "versions": versions(),
    }
    return result | {"worth": _worth(result)}


def _parts(
    annealed: Annealed,
    found: Network,
    on_validation: Callable[[jax.Array, Network], float],
    on_test: Callable[[jax.Array, Network], float],
) -> list[dict[str, Any]]:
    """The masks after the parts of a run that began with score search: energy, accuracies, cost of the part."""
    searched, dense = annealed.searched, annealed.problem.network
    if searched is None:
        return []
    largest = masks.by_score(jnp.abs(masks.flatten(dense.kernels)), int(annealed.mask.sum()))
    seconds = annealed.cpu_seconds - searched.cpu_seconds
    parts = [
        ("largest weights", largest, dense, None, 0.0),
        ("score search", jnp.asarray(searched.mask), dense, annealed.start_energy, searched.cpu_seconds),
        ("annealing", jnp.asarray(annealed.mask), found, float(annealed.best_energy.min()), seconds),
    ]
    return [
        {
            "part": name,
            "energy": energy,
            "validation_accuracy": on_validation(mask, network),
            "test_accuracy": on_test(mask, network),
            "cpu_seconds": cpu_seconds,
        }
        for name, mask, network, energy, cpu_seconds in parts
    ]


def _per_chain(annealed: Annealed, on_test: Callable[[jax.Array], float]) -> list[float] | None:
    """Test accuracy of the best mask of each chain; None where only the weights of the best chain are known."""
    if annealed.weights is not None:
        return None
    return [on_test(jnp.asarray(mask)) for mask in annealed.masks]


def _of_rival(found: rival.Rival, on_validation: Callable, on_test: Callable) -> dict[str, Any]:
    return {
        "method": found.method,
        "test_accuracy": on_test(found.mask),
        "validation_accuracy": on_validation(found.mask),
        "steps": found.steps,
        "seconds": found.seconds,
        "allowed_seconds": found.allowed_seconds,
        "clock": found.clock,
        "reproducible": not found.by_time,
    }


def _overlap(annealed: Annealed) -> dict[str, float]:
    start = np.asarray(annealed.problem.mask)
    with_start = float(np.mean([masks.jaccard(mask, start) for mask in annealed.masks]))
    return masks.overlap(annealed.masks)._asdict() | {"jaccard_with_start": with_start}


def _worth(result: Mapping[str, Any]) -> str:
    keeps_dense = result["test_accuracy"] >= result["dense_test_accuracy"] - result["tolerance"] - ROUNDING
    least = result["dense_validation_accuracy"] - result["tolerance"] - ROUNDING
    keeping = [probe["density"] for probe in result["probes"] if probe["validation_accuracy"] >= least]
    other = result["strongest_other"]
    return worth_text(
        other["difference"],
        other["standard_error"],
        other["name"],
        result["cpu_seconds"],
        result["density"],
        keeps_dense,
        result["tolerance"],
        min(keeping, default=None),
        result["moves_weights"],
        result["start"] == "score_search",
        result["rival"] is not None,
    )


def search_warnings(acceptance: float, improved: bool) -> list[str]:
    """Returns warnings about settings that did not suit the search.

    Args:
      acceptance: share of the proposals that were accepted.
      improved: whether the best mask is better than the initial one.

    >>> search_warnings(0.2, True), search_warnings(1e-7, False)
    ([], ['only 1e-05 % of the proposals were accepted: the temperatures are too low'])
    """
    accepted = f"{100 * acceptance:.3g} % of the proposals were accepted"
    if acceptance < 1e-4:
        return [f"only {accepted}: the temperatures are too low"]
    if acceptance > 0.95:
        return [f"{accepted}: the temperatures are too high"]
    return [] if improved else ["no mask was better than the initial one: too few steps, or too high temperatures"]
