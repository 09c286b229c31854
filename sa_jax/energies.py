"""Energies of a network's outputs; lower is better. All have the form `(logits, labels, axis=-1) -> scalar`."""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

Energy = Callable[..., jax.Array]

# Up to so many classes a loop of elementwise operations takes half the time of reductions on a CPU.
UNROLLED_CLASSES = 32


def cross_entropy(logit_scale: jax.Array | float = 1.0) -> Energy:
    """Mean cross-entropy of the labels under `softmax(logit_scale * logits)`, in nats.

    Pruning shrinks the logits, and an unscaled cross-entropy spends its branches on growing them back.
    The scale changes no weight and no prediction.

    Args:
      logit_scale: positive factor on the logits.

    Returns:
      `(logits, labels, axis=-1) -> energy`, with logits float `[samples, classes]` (or classes along any
      `axis` of two), labels int `[samples]`, energy float32 `[]`.

    >>> cross_entropy()(jnp.zeros((3, 4)), jnp.array([0, 1, 2]))
    Array(1.3862944, dtype=float32)
    """

    def energy(logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
        logits = logits * logit_scale
        if logits.shape[axis] > UNROLLED_CLASSES:
            classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
            wanted = jnp.where(classes == jnp.expand_dims(labels, axis), logits, 0).sum(axis)
            return jnp.mean(jax.nn.logsumexp(logits, axis) - wanted)
        by_class = jnp.unstack(logits, axis=axis)
        largest = reduce(jnp.maximum, by_class)
        others = sum(jnp.exp(row - largest) for row in by_class)
        wanted = sum(jnp.where(labels == label, row, 0) for label, row in enumerate(by_class))
        # The sum is at least 1 or NaN. Without the select XLA's CPU compiler hands all of this to a kernel library
        # when samples are many, and takes half as long again.
        return jnp.mean(jnp.where(others > 0, jnp.log(others) + largest - wanted, jnp.nan))

    return energy


def error_rate() -> Energy:
    """Fraction of samples whose largest logit is not the label's; a tie counts for the lower class.

    Returns:
      `(logits, labels, axis=-1) -> energy`, shapes as in `cross_entropy`, energy in 0..1.

    >>> error_rate()(jnp.eye(4), jnp.array([0, 1, 2, 2]))
    Array(0.25, dtype=float32)
    """

    def energy(logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
        return jnp.mean((logits.argmax(axis) != labels).astype(jnp.float32))

    return energy
