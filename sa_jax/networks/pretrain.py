"""Trains the dense network with Adam, before annealing. Optional."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sa_jax import checks
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import MLP
from sa_jax.types import PyTree

BATCH_SIZE = 128


def pretrain(
    rng_key: jax.Array,
    model: MLP,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    learning_rate: float,
    on_epoch: Callable[[int, PyTree], None] = lambda epoch, params: None,
) -> PyTree:
    """Trains an MLP with Adam (Kingma & Ba 2015) and a cosine learning-rate schedule.

    Args:
      rng_key: a key, `[]`, for the initial weights and the order of the samples.
      model: the Flax module.
      x: inputs, float32 `[samples, features]`.
      y: labels, int32 `[samples]`.
      epochs: number of passes over the samples, at least 1.
      learning_rate: learning rate at the first step, above 0; it falls to 0.
      on_epoch: called after each epoch with its number, from 1, and the params.

    Returns:
      The trained params, without the outer level `params`.

    Raises:
      InputError: epochs or learning_rate out of range.
    """
    checks.whole("epochs", epochs, 1)
    checks.number("learning_rate", learning_rate, above=0)
    init_key, order_key = jax.random.split(rng_key)
    batch_size = min(BATCH_SIZE, len(x))
    batches = len(x) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs * batches))
    loss = cross_entropy()

    @jax.jit
    def epoch(params, optimizer_state, rng_key, x, y):
        order = jax.random.permutation(rng_key, len(x))[: batches * batch_size].reshape(batches, batch_size)

        def update(carry, chosen):
            params, optimizer_state = carry
            gradient = jax.grad(lambda p: loss(model.apply({"params": p}, x[chosen]), y[chosen]))(params)
            with jax.numpy_dtype_promotion("standard"):  # Optax promotes its whole-number step
                updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(params, updates), optimizer_state), None

        return jax.lax.scan(update, (params, optimizer_state), order)[0]

    params = model.init(init_key, x[:1])["params"]
    optimizer_state = optimizer.init(params)
    samples = jnp.asarray(x), jnp.asarray(y)
    for number, key in enumerate(jax.random.split(order_key, epochs), 1):
        params, optimizer_state = epoch(params, optimizer_state, key, *samples)
        on_epoch(number, params)
    return params
