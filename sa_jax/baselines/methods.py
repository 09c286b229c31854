"""The table of baselines by name, and `prune`, which runs any of them on Flax params."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.inputs import check_key
from sa_jax.baselines import scores, search, second_order, trained
from sa_jax.baselines.trained import Training
from sa_jax.checks import choice, number, whole
from sa_jax.networks import masks, mlp
from sa_jax.networks.arrays import jit
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import check_samples
from sa_jax.pruning.options import Options, score_steps
from sa_jax.pruning.scores import ScoreSettings, found_mask
from sa_jax.types import InputError, PyTree


class Budget(NamedTuple):
    """How much computation a method may use; hashable.

    Attributes:
      num_samples: number of samples for one-shot scores and for the Fisher matrix.
      num_evaluations: number of energy evaluations for random search, greedy swaps and the genetic algorithm.
      search_samples: number of samples in the energy of random search and the genetic algorithm, which evaluate
        whole networks. Greedy swaps are evaluated incrementally, on all samples.
      epochs: number of passes over all samples, for methods that train.
      learning_rate: learning rate of Adam for trained scores; 'edge_popup_scaled' uses twice as much, gates five
        times as much, and 'edge_popup_momentum' has its own. All were chosen on validation samples of MNIST and
        Fashion-MNIST.
      score_steps: number of steps of score search; None to choose it as a run does.
    """

    num_samples: int = 1_000
    num_evaluations: int = 20_000
    search_samples: int = 1_000
    epochs: int = 10
    learning_rate: float = 1e-2
    score_steps: int | None = None


DEFAULT_BUDGET = Budget()


class Task(NamedTuple):
    """The input of a method.

    Attributes:
      rng_key: a key, `[]`.
      network: the dense network.
      x: inputs, float32 `[samples, features]`.
      y: labels, int32 `[samples]`.
      num_kept: number of branches that are kept.
      activation: activation between layers.
      energy: energy of the logits, minimised by the methods that search a mask, 'edge_popup_scaled' and
        'edge_popup_momentum'; for a fair comparison the same as in annealing. None for the cross-entropy of the
        labels.
      budget: how much computation to use.
    """

    rng_key: jax.Array  # key []
    network: Network
    x: jax.Array  # float32 [samples, features]
    y: jax.Array  # int32 [samples]
    num_kept: int
    activation: str = "relu"
    energy: Energy | None = None
    budget: Budget = DEFAULT_BUDGET


class Found(NamedTuple):
    """The result of a method: a flat mask, bool `[total]`, and the network that it belongs to."""

    mask: jax.Array  # bool [total]
    network: Network


class Method(NamedTuple):
    """A pruning method, its name for people, and what it uses.

    Attributes:
      find: `(task) -> found`.
      label: name of the method in tables, charts and sentences.
      uses_labels: whether it uses labels.
      uses_gradients: whether it takes a derivative of the loss.
      moves_weights: whether it changes weights.
      minimises_energy: whether it minimises the energy of the task.
      own: whether it is a search of this package, and not a rival of its annealing.
    """

    find: Callable[[Task], Found]
    label: str
    uses_labels: bool = False
    uses_gradients: bool = False
    moves_weights: bool = False
    minimises_energy: bool = False
    own: bool = False


def _of_weights(label: str, score: Callable) -> Method:
    return Method(lambda task: Found(score(task.network, task.num_kept), task.network), label)


def _of_inputs(label: str, score: Callable) -> Method:
    def find(task):
        x, _ = _some(task, task.budget.num_samples)
        return Found(score(task.network, x, task.num_kept, task.activation), task.network)

    return Method(find, label)


def _of_losses(label: str, score: Callable) -> Method:
    def find(task):
        x, y = _some(task, task.budget.num_samples)
        return Found(score(task.network, x, y, task.num_kept, task.activation), task.network)

    return Method(find, label, uses_labels=True, uses_gradients=True)


def _searched(label: str, find_mask: Callable, all_samples: bool = False) -> Method:
    def find(task):
        x, y = (task.x, task.y) if all_samples else _some(task, task.budget.search_samples)
        settings = task.budget.num_evaluations, task.activation, task.energy
        return Found(find_mask(task.rng_key, task.network, x, y, task.num_kept, *settings), task.network)

    return Method(find, label, uses_labels=True, minimises_energy=True)


@jit(static_argnames=("activation", "energy", "settings"))
def _highest_scores(rng_key, network, x, y, num_kept, activation, energy, settings) -> jax.Array:
    energy = cross_entropy() if energy is None else energy
    return found_mask(rng_key, network, x, y, num_kept, energy, activation, settings)


def _scored(label: str, estimates: str) -> Method:
    def find(task):
        steps = score_steps(Options(score_steps=task.budget.score_steps), task.network.total, len(task.x))
        settings = task.activation, task.energy, ScoreSettings(steps, estimates)
        mask = _highest_scores(task.rng_key, task.network, task.x, task.y, task.num_kept, *settings)
        return Found(mask, task.network)

    gradients = estimates == "gradient"
    return Method(find, label, uses_labels=True, uses_gradients=gradients, minimises_energy=True, own=True)


def _with_adam(budget: Budget) -> Training:
    return Training(budget.epochs, budget.learning_rate)


def _with_faster_adam(budget: Budget) -> Training:
    return Training(budget.epochs, 2 * budget.learning_rate)


def _with_fastest_adam(budget: Budget) -> Training:
    return Training(budget.epochs, 5 * budget.learning_rate)


def _with_momentum(budget: Budget) -> Training:
    return Training(budget.epochs, trained.MOMENTUM_RATE, trained.momentum)


def _gated(
    label: str,
    find_mask: Callable,
    training: Callable[[Budget], Training] = _with_adam,
    on_given_energy: bool = False,
) -> Method:
    def find(task):
        settings = task.activation, task.energy if on_given_energy else None, training(task.budget)
        mask = find_mask(task.rng_key, task.network, task.x, task.y, task.num_kept, *settings)
        return Found(mask, task.network)

    return Method(find, label, uses_labels=True, uses_gradients=True, minimises_energy=on_given_energy)


def _random(task: Task) -> Found:
    return Found(scores.random(task.rng_key, task.network, task.num_kept), task.network)


def _fisher(task: Task) -> second_order.Fisher:
    return second_order.empirical_fisher(task.network, *_some(task, task.budget.num_samples), task.activation)


def _obs_mask(task: Task) -> Found:
    return Found(second_order.obs_mask(task.network, _fisher(task), task.num_kept), task.network)


def _woodfisher(task: Task) -> Found:
    return Found(*second_order.woodfisher(task.network, _fisher(task), task.num_kept))


def _cbs_mask(task: Task) -> Found:
    fisher = _fisher(task)
    start = second_order.obs_mask(task.network, fisher, task.num_kept)
    return Found(second_order.cbs_mask(task.network, fisher, task.num_kept, start), task.network)


def _obs_update(task: Task) -> Found:
    fisher = _fisher(task)
    mask = second_order.obs_mask(task.network, fisher, task.num_kept)
    return Found(mask, second_order.obs_update(task.network, fisher, mask))


def _magnitude_finetuned(task: Task) -> Found:
    settings = task.num_kept, task.activation, None, Training(task.budget.epochs, 2e-3)
    return Found(*trained.magnitude_finetuned(task.rng_key, task.network, task.x, task.y, *settings))


def _smaller_dense(task: Task) -> Found:
    """The best depth by the last tenth of the samples, then trained on all."""
    layouts = trained.smaller_layouts(tuple(task.network.sizes), task.num_kept)
    use_bias = task.network.biases[0] is not None
    training = Training(task.budget.epochs, 2e-3)
    seen = len(task.y) - max(len(task.y) // 10, 1)

    def train(sizes, x, y):
        return trained.train_dense(task.rng_key, sizes, use_bias, x, y, task.activation, None, training)

    def accuracy(sizes):
        network = train(sizes, task.x[:seen], task.y[:seen])
        logits = mlp.forward(network, task.x[seen:], task.activation)
        return float((logits.argmax(-1) == task.y[seen:]).mean())

    best = max(layouts, key=accuracy) if len(layouts) > 1 else layouts[0]
    network = train(best, task.x, task.y)
    return Found(jnp.ones(network.total, bool), network)


_LEARNS = {"uses_labels": True, "uses_gradients": True}

METHODS: dict[str, Method] = {
    "random": Method(_random, "Random"),
    "magnitude_global": _of_weights("Magnitude, global", scores.magnitude_global),
    "magnitude_layerwise": _of_weights("Magnitude, per layer", scores.magnitude_layerwise),
    "magnitude_erk": _of_weights("Magnitude, ERK", scores.magnitude_erk),
    "wanda_global": _of_inputs("Wanda, global", scores.wanda_global),
    "wanda_per_output": _of_inputs("Wanda, per output", scores.wanda_per_output),
    "node_entropy": _of_inputs("Node, entropy", scores.node_entropy),
    "node_output_norm": _of_weights("Node, output norm", scores.node_output_norm),
    "node_input_norm": _of_weights("Node, input norm", scores.node_input_norm),
    "random_search": _searched("Random search", search.random_search),
    "greedy_swaps": _searched("Greedy swaps", search.greedy_swaps, all_samples=True),
    "genetic_algorithm": _searched("Genetic algorithm", search.genetic_algorithm),
    "score_search": _scored("Score search", "forward"),
    "snip": _of_losses("SNIP", scores.snip),
    "obd": _of_losses("OBD", scores.obd),
    "obs_mask": Method(_obs_mask, "OBS, mask alone", **_LEARNS),
    "cbs_mask": Method(_cbs_mask, "CBS, mask alone", **_LEARNS),
    "edge_popup": _gated("Edge-popup", trained.edge_popup),
    "edge_popup_scaled": _gated("Edge-popup, scaled logits", trained.edge_popup, _with_faster_adam, True),
    "edge_popup_momentum": _gated(
        "Edge-popup, momentum", trained.edge_popup, _with_momentum, on_given_energy=True
    ),
    "movement": _gated("Movement", trained.movement),
    "l0_gates": _gated("L0 gates", trained.l0_gates, _with_fastest_adam),
    "score_search_gradient": _scored("Score search, derivative", "gradient"),
    "woodfisher": Method(_woodfisher, "WoodFisher", **_LEARNS, moves_weights=True),
    "obs_update": Method(_obs_update, "OBS, with update", **_LEARNS, moves_weights=True),
    "magnitude_finetuned": Method(_magnitude_finetuned, "Magnitude, fine-tuned", **_LEARNS, moves_weights=True),
    "smaller_dense": Method(_smaller_dense, "Smaller dense network", **_LEARNS, moves_weights=True),
}


def check_budget(budget: Budget, where: str = "budget") -> Budget:
    """Returns a budget of plain numbers, after checking them.

    Args:
      budget: the budget.
      where: the user's name of the budget, for the message.

    Raises:
      InputError: a number that is not whole, or not above 0.
    """
    plain: dict[str, Any] = {}
    for name, value in budget._asdict().items():
        if name == "learning_rate":
            plain[name] = number(f"{where}.{name}", value, above=0)
        elif name != "score_steps":
            plain[name] = whole(f"{where}.{name}", value, 1)
        elif value is not None:
            plain[name] = whole(f"{where}.{name}", value, 1, otherwise=", or None to choose it")
    return Budget(**plain)


def prune(
    rng_key: jax.Array,
    method: str,
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    density: float = 0.05,
    activation: str = "relu",
    energy: Energy | None = None,
    budget: Budget = DEFAULT_BUDGET,
) -> tuple[PyTree, PyTree]:
    """Prunes a multilayer perceptron by one of the `METHODS`.

    Args:
      rng_key: a key, `[]`, for everything random, such as the choice of the samples for scores.
      method: name of the method, such as 'wanda_global'. All `METHODS` but 'smaller_dense', whose network has
        other shapes (see `trained.train_dense`).
      params: Flax params of a multilayer perceptron, as for `sa_jax.prune`.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`; not used by methods that need no labels.
      density: kept / total, in (0, 1]; exactly `round(density * total)` branches are kept.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: energy of the logits, for methods that search a mask, 'edge_popup_scaled' and
        'edge_popup_momentum'; None for the cross-entropy of the labels.
      budget: how much computation to use.

    Returns:
      The masks, nested like `params` without the biases, bool `[inputs, outputs]` like the kernels; and the
      params, nested as given, which only methods with `moves_weights` change.

    Raises:
      InputError: an unknown method, a budget of 0 or less, weights that training moved beyond all bounds, or a
        key, parameters, samples or a density that `sa_jax.prune` would refuse.

    >>> from sa_jax.networks.mlp import MLP
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = MLP([16, 2]).init(jax.random.key(1), x)
    >>> masks, _ = prune(jax.random.key(2), "wanda_global", params, x, y, density=0.1)
    >>> sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    16
    """
    check_key(rng_key)
    choice("method", method, [name for name in METHODS if name != "smaller_dense"])
    mlp.check_activation(activation)
    budget = check_budget(budget)
    names, network = mlp.network_of(params)
    num_kept = masks.num_kept(density, network.total)
    x, y = check_samples(network, x, y)
    samples = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    task = Task(rng_key, network, *samples, num_kept, activation, energy, budget)
    mask, moved = METHODS[method].find(task)
    if not all(np.isfinite(np.asarray(array)).all() for array in jax.tree.leaves(moved)):
        raise InputError(f"{method} moved weights until they were not finite: lower budget.learning_rate")
    kernel_masks = mlp.mask_tree(names, masks.unflatten(mask, network.shapes))
    return kernel_masks, mlp.with_weights(params, names, moved)


def _some(task: Task, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """This number of samples, drawn again for each key: some scores depend strongly on the choice of samples."""
    chosen = jax.random.permutation(jax.random.fold_in(task.rng_key, 1), len(task.x))[:num_samples]
    return task.x[chosen], task.y[chosen]
