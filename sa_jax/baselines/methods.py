"""What one would compare annealing with: each method from its source, on plain parameters and masks.

`prune("wanda_global", ...)` takes any of `METHODS` by its name; the functions behind them are in `scores`,
`search`, `second_order` and `trained`, for use alone. Those of `layerwise` prune one linear layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.baselines import scores, search, second_order, trained
from sa_jax.baselines.trained import Training
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import check_samples
from sa_jax.types import InputError, PyTree


class Budget(NamedTuple):
    """How much a method may spend; hashable.

    Attributes:
      num_samples: samples that one-shot scores and the Fisher are taken from.
      num_evaluations: masks whose energy random search, greedy swaps and the genetic algorithm take.
      search_samples: samples that random search and the genetic algorithm take it on, which evaluate whole
        networks; greedy swaps, evaluated incrementally, take all.
      epochs: passes over all samples of what is trained.
      learning_rate: of Adam for trained scores; gates take five times as much.
    """

    num_samples: int = 1_000
    num_evaluations: int = 20_000
    search_samples: int = 1_000
    epochs: int = 10
    learning_rate: float = 1e-2


DEFAULT_BUDGET = Budget()


class Task(NamedTuple):
    """What a method is given.

    Attributes:
      rng_key: a key, `[]`.
      network: the dense network.
      x: inputs, float32 `[samples, features]`.
      y: labels, int32 `[samples]`.
      kept: number of branches that stay.
      activation: between layers.
      energy: of the logits, minimised by the methods that search a mask and by 'edge_popup_scaled'; the same as
        annealing's for equal terms. None for the cross-entropy of the labels.
      budget: how much to spend.
    """

    rng_key: jax.Array
    network: Network
    x: jax.Array
    y: jax.Array
    kept: int
    activation: str = "relu"
    energy: Energy | None = None
    budget: Budget = DEFAULT_BUDGET


class Found(NamedTuple):
    """What a method finds: a flat mask, bool `[total]`, and the network that it is a mask of."""

    mask: jax.Array
    network: Network


class Method(NamedTuple):
    """A method and what it may use.

    Attributes:
      find: `(task) -> found`.
      uses_labels: whether it sees labels.
      uses_gradients: whether it takes a derivative of the loss.
      moves_weights: whether weights change.
      minimises_energy: whether it minimises the energy that the task gives.
    """

    find: Callable[[Task], Found]
    uses_labels: bool = False
    uses_gradients: bool = False
    moves_weights: bool = False
    minimises_energy: bool = False


def _of_weights(score: Callable) -> Method:
    return Method(lambda task: Found(score(task.network, task.kept), task.network))


def _of_inputs(score: Callable) -> Method:
    def find(task):
        x, _ = _some(task, task.budget.num_samples)
        return Found(score(task.network, x, task.kept, task.activation), task.network)

    return Method(find)


def _of_losses(score: Callable) -> Method:
    def find(task):
        x, y = _some(task, task.budget.num_samples)
        return Found(score(task.network, x, y, task.kept, task.activation), task.network)

    return Method(find, uses_labels=True, uses_gradients=True)


def _searched(find_mask: Callable, all_samples: bool = False) -> Method:
    def find(task):
        x, y = (task.x, task.y) if all_samples else _some(task, task.budget.search_samples)
        settings = task.budget.num_evaluations, task.activation, task.energy
        return Found(find_mask(task.rng_key, task.network, x, y, task.kept, *settings), task.network)

    return Method(find, uses_labels=True, minimises_energy=True)


def _gated(find_mask: Callable, rate: float, on_given_energy: bool = False) -> Method:
    def find(task):
        training = Training(task.budget.epochs, rate * task.budget.learning_rate)
        settings = task.activation, task.energy if on_given_energy else None, training
        mask = find_mask(task.rng_key, task.network, task.x, task.y, task.kept, *settings)
        return Found(mask, task.network)

    return Method(find, uses_labels=True, uses_gradients=True, minimises_energy=on_given_energy)


def _random(task: Task) -> Found:
    return Found(scores.random(task.rng_key, task.network, task.kept), task.network)


def _fisher(task: Task) -> second_order.Fisher:
    return second_order.empirical_fisher(task.network, *_some(task, task.budget.num_samples), task.activation)


def _obs_mask(task: Task) -> Found:
    return Found(second_order.obs_mask(task.network, _fisher(task), task.kept), task.network)


def _woodfisher(task: Task) -> Found:
    return Found(*second_order.woodfisher(task.network, _fisher(task), task.kept))


def _cbs_mask(task: Task) -> Found:
    fisher = _fisher(task)
    start = second_order.obs_mask(task.network, fisher, task.kept)
    return Found(second_order.cbs_mask(task.network, fisher, task.kept, start), task.network)


def _obs_update(task: Task) -> Found:
    fisher = _fisher(task)
    mask = second_order.obs_mask(task.network, fisher, task.kept)
    return Found(mask, second_order.obs_update(task.network, fisher, mask))


def _magnitude_finetuned(task: Task) -> Found:
    settings = task.kept, task.activation, None, Training(task.budget.epochs, 2e-3)
    return Found(*trained.magnitude_finetuned(task.rng_key, task.network, task.x, task.y, *settings))


def _smaller_dense(task: Task) -> Found:
    """The best depth by the last tenth of the samples, then trained on all."""
    layouts = trained.smaller_layouts(tuple(task.network.sizes), task.kept)
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
    "random": Method(_random),
    "magnitude_global": _of_weights(scores.magnitude_global),
    "magnitude_layerwise": _of_weights(scores.magnitude_layerwise),
    "magnitude_erk": _of_weights(scores.magnitude_erk),
    "wanda_global": _of_inputs(scores.wanda_global),
    "wanda_per_output": _of_inputs(scores.wanda_per_output),
    "node_entropy": _of_inputs(scores.node_entropy),
    "node_output_norm": _of_weights(scores.node_output_norm),
    "node_input_norm": _of_weights(scores.node_input_norm),
    "random_search": _searched(search.random_search),
    "greedy_swaps": _searched(search.greedy_swaps, all_samples=True),
    "genetic_algorithm": _searched(search.genetic_algorithm),
    "snip": _of_losses(scores.snip),
    "obd": _of_losses(scores.obd),
    "obs_mask": Method(_obs_mask, **_LEARNS),
    "cbs_mask": Method(_cbs_mask, **_LEARNS),
    "edge_popup": _gated(trained.edge_popup, 1),
    "edge_popup_scaled": _gated(trained.edge_popup, 1, on_given_energy=True),
    "movement": _gated(trained.movement, 1),
    "l0_gates": _gated(trained.l0_gates, 5),
    "woodfisher": Method(_woodfisher, **_LEARNS, moves_weights=True),
    "obs_update": Method(_obs_update, **_LEARNS, moves_weights=True),
    "magnitude_finetuned": Method(_magnitude_finetuned, **_LEARNS, moves_weights=True),
    "smaller_dense": Method(_smaller_dense, **_LEARNS, moves_weights=True),
}


def check_budget(budget: Budget, where: str = "budget") -> None:
    """Refuses an effort with which nothing could be done.

    Raises:
      InputError: a number that is not whole, or not above 0, named as `where` and its field.
    """
    for name, value in budget._asdict().items():
        if name == "learning_rate":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{where}.learning_rate must be a number above 0, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{where}.{name} must be a whole number of at least 1, not {value!r}")


def prune(
    method: str,
    rng_key: jax.Array,
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    density: float = 0.05,
    activation: str = "relu",
    energy: Energy | None = None,
    budget: Budget = DEFAULT_BUDGET,
) -> tuple[PyTree, PyTree]:
    """Prunes a multilayer perceptron by one of `METHODS`.

    Args:
      method: its name, such as 'wanda_global'; all but 'smaller_dense', whose network has other shapes
        (`trained.train_dense`).
      rng_key: a key, `[]`, for all that is random, such as which samples scores are taken from.
      params: as `sa_jax.prune` takes them.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`; unused by what needs none.
      density: kept / total, in (0, 1].
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits, for methods that search a mask and 'edge_popup_scaled'; None for the cross-entropy of
        the labels.
      budget: how much to spend.

    Returns:
      `params`, nested as given, changed only by methods that move weights; and `masks`, nested likewise without
      the biases, bool, as `sa_jax.models.apply` takes them.

    Raises:
      InputError: an unknown method, an effort of 0 or less, or parameters, samples or a density that
        `sa_jax.prune` would refuse.

    >>> from sa_jax.models import MLP
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = MLP([16, 2]).init(jax.random.key(1), x)
    >>> _, masks = prune("wanda_global", jax.random.key(2), params, x, y, density=0.1)
    >>> sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    16
    """
    known = [name for name in METHODS if name != "smaller_dense"]
    if method not in known:
        raise InputError(f"method must be one of {', '.join(known)}, not {method!r}")
    mlp.check_activation(activation)
    check_budget(budget)
    names, network = mlp.network_of(params)
    kept = masks.num_kept(density, network.total)
    check_samples(network, np.asarray(x), np.asarray(y))
    samples = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    task = Task(rng_key, network, *samples, kept, activation, energy, budget)
    mask, moved = METHODS[method].find(task)
    kernel_masks = mlp.mask_tree(names, masks.unflatten(mask, network.shapes))
    return mlp.with_weights(params, names, moved), kernel_masks


def _some(task: Task, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """So many samples, drawn anew for each key: some scores depend on which ones more than one would think."""
    chosen = jax.random.permutation(jax.random.fold_in(task.rng_key, 1), len(task.x))[:num_samples]
    return task.x[chosen], task.y[chosen]
