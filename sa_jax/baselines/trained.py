"""Baselines trained by back-propagation with Optax: scores or gates of fixed weights, or the weights.

All shuffle the samples by their key and lower the learning rate as a cosine. The optimizer is Adam or `momentum`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sa_jax.networks import masks, mlp
from sa_jax.networks.arrays import jit
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError, PyTree

BATCH_SIZE = 256
# Of `momentum`: the share of the running mean, and of the running mean square, that remains after a step. And its
# learning rate for scores, the best of 0.02, 0.05, 0.1 and 0.2 on validation samples of MNIST and Fashion-MNIST.
MOMENTUM, SCALE_DECAY, MOMENTUM_RATE = 0.9, 0.999, 0.1
# Hard-concrete gates (Louizos et al. 2018): the temperature, and the interval to which the concrete variable is
# stretched.
GATE_TEMPERATURE, GATE_LOW, GATE_HIGH = 2 / 3, -0.1, 1.1


@partial(jax.tree_util.register_dataclass, data_fields=["epochs"], meta_fields=["learning_rate", "optimizer"])
@dataclass(frozen=True)
class Training:
    """How long and how fast to train. Under `jit` the number of epochs is traced: any number is one program.

    Attributes:
      epochs: passes over the samples, int32 `[]`.
      learning_rate: learning rate at the first step; it falls to 0.
      optimizer: makes the optimizer from the schedule of the learning rate: `optax.adam`, or `momentum`.
    """

    epochs: int | jax.Array = 10  # int32 []
    learning_rate: float = 1e-2
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = optax.adam


class _Momentum(NamedTuple):
    """Running mean of the slopes; their running mean square, not corrected for its start at 0; steps made."""

    mean: PyTree
    mean_square: jax.Array  # float32 []
    count: jax.Array  # float32 []


def momentum(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Returns momentum with one scale for all scores, as in `sa_jax.pruning.scores`.

    The running mean of the slopes is divided by the root of their running mean square. Other than in Adam, the
    mean square is one number for all scores, not one number for each.

    Args:
      learning_rate: learning rate, or its schedule.
    """

    def init(params):
        return _Momentum(jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.float32(0))

    def update(updates, state, params=None):
        del params
        mean = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, state.mean, updates)
        leaves = jax.tree.leaves(updates)
        square = sum((leaf**2).sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
        state = _Momentum(mean, SCALE_DECAY * state.mean_square + (1 - SCALE_DECAY) * square, state.count + 1)
        corrected = state.mean_square / (1 - SCALE_DECAY**state.count)
        scale = jnp.where(corrected > 0, jax.lax.rsqrt(corrected), 0)
        return jax.tree.map(lambda leaf: scale * leaf, mean), state

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


@jit(static_argnames=("num_kept", "activation", "energy"))
def edge_popup(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
    training: Training = Training(),
) -> jax.Array:
    """Trains a score for each fixed weight and keeps the `num_kept` highest (edge-popup; Ramanujan et al. 2020).

    As in their section 3 the derivatives pass straight through to the scores of pruned branches. Other than there
    the scores are compared over all layers and start at `|w|`, which is better than a random start for trained
    weights.

    Args:
      rng_key: a key, `[]`, for the order of the samples.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
      training: how long and how fast.

    Returns:
      A flat mask, bool `[total]`, with exactly `num_kept` ones.
    """
    weights = masks.flatten(network.kernels)

    def use(scores, step, rng_key):
        del step, rng_key
        return weights * _straight_through(scores, num_kept), 0.0

    magnitude = jnp.abs(weights)
    start = magnitude / _spread(magnitude)
    return masks.by_score(_train(rng_key, start, use, network, x, y, activation, energy, training), num_kept)


@jit(static_argnames=("num_kept", "activation", "energy"))
def movement(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
    training: Training = Training(),
) -> jax.Array:
    """Trains scores up `-w * dE/dw` and keeps the highest (movement pruning; Sanh et al. 2020, section 3).

    As there, the scores start at 0, and the density falls to its end along a cubic curve over the first two
    thirds. Other than there, the weights are not fine-tuned. Arguments and result as in `edge_popup`.
    """
    weights = masks.flatten(network.kernels)
    steps = _num_steps(len(x), training)

    def use(scores, step, rng_key):
        del rng_key
        share = jnp.clip(step.astype(jnp.float32) / (steps * 2 / 3), 0, 1)
        now = num_kept + (network.total - num_kept) * (1 - share) ** 3
        return weights * _straight_through(scores, jnp.int32(now)), 0.0

    start = jnp.zeros(network.total, jnp.float32)
    return masks.by_score(_train(rng_key, start, use, network, x, y, activation, energy, training), num_kept)


@jit(static_argnames=("num_kept", "activation", "energy"))
def l0_gates(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
    training: Training = Training(),
) -> jax.Array:
    """Trains stochastic gates of fixed weights with a given expected number of open gates (Louizos et al. 2018).

    Hard-concrete gates, equations 10 to 12. In place of a fixed price on each open gate, a multiplier is trained
    together with the gates, by gradient ascent. It brings the expected number of open gates to `num_kept`, along
    the curve of `movement`. The `num_kept` branches whose gates are most open are kept. DiffPrune (Shulman 2020)
    is a method of this family. Arguments and result as in `edge_popup`.
    """
    weights = masks.flatten(network.kernels)
    steps = _num_steps(len(x), training)
    shift = GATE_TEMPERATURE * math.log(-GATE_LOW / GATE_HIGH)

    def use(position, step, rng_key):
        log_odds, multiplier = position["log_odds"], position["multiplier"]
        noise = jax.random.logistic(rng_key, log_odds.shape, jnp.float32)
        gates = jax.nn.sigmoid((noise + log_odds) / GATE_TEMPERATURE)
        gates = jnp.clip(gates * (GATE_HIGH - GATE_LOW) + GATE_LOW, 0, 1)
        density = jax.nn.sigmoid(log_odds - shift).mean()
        share = jnp.clip(step.astype(jnp.float32) / (steps * 2 / 3), 0, 1)
        wanted = num_kept / network.total
        now = wanted + (1 - wanted) * (1 - share) ** 3
        excess = (density - now) / now
        # Gradient descent in the gates, ascent in the multiplier.
        price = _reverse(multiplier) * excess + excess**2
        return weights * gates, price

    magnitude = jnp.abs(weights)
    start = {"log_odds": 2.0 + 0.5 * magnitude / _spread(magnitude), "multiplier": jnp.float32(0)}
    trained = _train(rng_key, start, use, network, x, y, activation, energy, training)
    return masks.by_score(trained["log_odds"], num_kept)


@jit(static_argnames=("num_kept", "activation", "energy"))
def magnitude_finetuned(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
    training: Training = Training(10, 2e-3),
) -> tuple[jax.Array, Network]:
    """Keeps the largest `|w|` over all layers and fine-tunes the kept weights (Han et al. 2015).

    Arguments as in `edge_popup`.

    Returns:
      The flat mask, bool `[total]`, and the network with its moved weights, biases included.
    """
    mask = masks.by_score(jnp.abs(masks.flatten(network.kernels)), num_kept)

    def use(position, step, rng_key):
        del step, rng_key
        return position, 0.0

    start = mlp.masked(network, mask)

    def run(position, x):
        return mlp.forward(mlp.masked(position, mask), x, activation)

    trained = _train_any(rng_key, start, use, run, x, y, energy, training)
    return mask, mlp.masked(trained, mask)


@jit(static_argnames=("sizes", "use_bias", "activation", "energy"))
def train_dense(
    rng_key: jax.Array,
    sizes: tuple[int, ...],
    use_bias: bool,
    x: jax.Array,
    y: jax.Array,
    activation: str = "relu",
    energy: Energy | None = None,
    training: Training = Training(10, 2e-3),
) -> Network:
    """Trains a dense network from He-scaled random weights.

    Args:
      rng_key: a key, `[]`, for the weights and the order of the samples.
      sizes: width of the input and of each layer.
      use_bias: whether layers have biases.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
      training: how long and how fast.
    """
    init_key, order_key = jax.random.split(rng_key)
    model = mlp.MLP(sizes[1:], activation, use_bias)
    start = mlp.network_of(model.init(init_key, x[:1])["params"])[1]

    def use(position, step, rng_key):
        del step, rng_key
        return position, 0.0

    def run(position, x):
        return mlp.forward(position, x, activation)

    return _train_any(order_key, start, use, run, x, y, energy, training)


def smaller_layouts(sizes: tuple[int, ...], num_kept: int) -> list[tuple[int, ...]]:
    """Returns the widest dense layouts with at most `num_kept` branches, one for each number of hidden layers.

    The smaller dense networks of Crowley, Turner et al. 2018, who found them hard to beat by pruning. All hidden
    layers are scaled by the same factor. A layout with fewer hidden layers has the first ones, because many layers
    of a few units each would be bottlenecks.

    Args:
      sizes: width of the input and of each layer.
      num_kept: number of branches.

    Returns:
      The widths of the input and of each layer, for each layout with at least one unit in each layer, from one
      hidden layer on.

    Raises:
      InputError: one unit in one hidden layer already makes more branches.

    >>> smaller_layouts((784, 300, 100, 10), 26_620)
    [(784, 33, 10), (784, 33, 11, 10)]
    """
    found, reason = [], ""
    for depth in range(min(1, len(sizes) - 2), len(sizes) - 1):
        try:
            found.append(_widest((*sizes[: depth + 1], sizes[-1]), num_kept))
        except InputError as error:
            reason = reason or str(error)
    if not found:
        raise InputError(reason)
    return found


def _widest(sizes: tuple[int, ...], num_kept: int) -> tuple[int, ...]:
    """The widest layout with at most `num_kept` branches, all hidden layers scaled by the same factor."""

    def scaled(share):
        return (sizes[0], *(max(round(share * width), 1) for width in sizes[1:-1]), sizes[-1])

    def branches(widths):
        return sum(a * b for a, b in itertools.pairwise(widths))

    if branches(scaled(0)) > num_kept:
        raise InputError(
            f"no dense network of {sizes[0]} inputs has as few as {num_kept} branches: "
            f"one unit in each hidden layer makes {branches(scaled(0))}"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if branches(scaled(middle)) <= num_kept else (low, middle)
    return scaled(low)


def _num_steps(samples: int, training: Training) -> jax.Array:
    return jnp.float32(training.epochs * (samples // min(BATCH_SIZE, samples)))


def _train(rng_key, start, use, network: Network, x, y, activation, energy, training) -> Any:
    """Trains a position from which `use(position, step, rng_key) -> (flat weights, price)` makes the weights."""

    def run(flat_weights, x):
        kernels = tuple(masks.unflatten(flat_weights, network.shapes))
        return mlp.forward(network._replace(kernels=kernels), x, activation)

    return _train_any(rng_key, start, use, run, x, y, energy, training)


def _train_any(
    rng_key: jax.Array,
    start: PyTree,
    use: Callable,
    run: Callable,
    x,
    y,
    energy: Energy | None,
    training: Training,
) -> PyTree:
    energy = cross_entropy() if energy is None else energy
    batch_size = min(BATCH_SIZE, len(x))
    batches, steps = len(x) // batch_size, _num_steps(len(x), training)

    def rate(step):
        return training.learning_rate * (1 + jnp.cos(jnp.pi * step.astype(jnp.float32) / steps)) / 2

    optimizer = training.optimizer(rate)

    def epoch(number, carry):
        epoch_key = jax.random.fold_in(rng_key, number)
        order = jax.random.permutation(epoch_key, len(x))[: batches * batch_size].reshape(batches, batch_size)

        def update(carry, batch):
            position, optimizer_state = carry
            step = number * batches + batch
            noise_key = jax.random.fold_in(epoch_key, batch)

            def loss(position):
                used, price = use(position, step, noise_key)
                return energy(run(used, x[order[batch]]), y[order[batch]]) + price

            slopes = jax.grad(loss)(position)
            with jax.numpy_dtype_promotion("standard"):  # Optax multiplies its int32 steps by floats
                updates, optimizer_state = optimizer.update(slopes, optimizer_state)
            return (optax.apply_updates(position, updates), optimizer_state), None

        return jax.lax.scan(update, carry, jnp.arange(batches))[0]

    return jax.lax.fori_loop(0, training.epochs, epoch, (start, optimizer.init(start)))[0]


def _spread(values: jax.Array) -> jax.Array:
    """The standard deviation; 1 where all values are the same."""
    spread = values.std()
    return jnp.where(spread > 0, spread, 1.0)


def _straight_through(scores: jax.Array, num_kept: jax.Array | int) -> jax.Array:
    """1 for the `num_kept` highest scores, else 0; its derivative with respect to the scores is taken as 1."""
    mask = masks.by_score(jax.lax.stop_gradient(scores), num_kept).astype(scores.dtype)
    return mask + scores - jax.lax.stop_gradient(scores)


def _reverse(value: jax.Array) -> jax.Array:
    """The value, with its derivative negated."""
    return -value + jax.lax.stop_gradient(2 * value)
