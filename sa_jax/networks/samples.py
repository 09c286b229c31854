"""Validates inputs, labels and weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError, PyTree


def as_samples(x: Any, y: Any) -> tuple[Any, Any]:
    """Returns inputs and labels as arrays, see `as_numbers`, after checking that labels are whole numbers.

    Args:
      x: inputs, numbers `[samples, ...]`.
      y: labels, int `[samples]`.

    Raises:
      InputError: they are not arrays of numbers, or labels are not whole numbers.
    """
    x, y = as_numbers("inputs", x), as_numbers("labels", y)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(f"labels must be whole numbers, not {y.dtype}: convert them, with y.astype(int)")
    return x, y


def check_samples(network: Network, x: Any, y: Any) -> tuple[Any, Any]:
    """Returns inputs and labels as `as_samples` does, after checking that they fit a network.

    Args:
      network: the weights.
      x: inputs, numbers `[samples, features]`.
      y: labels, int `[samples]`.

    Raises:
      InputError: inputs or labels do not fit, or inputs or weights are not finite.
    """
    x, y = as_samples(x, y)
    features, classes = network.sizes[0], network.sizes[-1]
    if np.ndim(x) != 2 or np.shape(x)[1] != features or np.shape(x)[0] == 0:
        raise InputError(f"inputs must have the shape [samples, {features}], not {list(np.shape(x))}")
    if np.shape(y) != np.shape(x)[:1]:
        raise InputError(f"labels must have the shape [{np.shape(x)[0]}], one per input, not {list(np.shape(y))}")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise InputError(f"inputs must be numbers, not {x.dtype}")
    check_values(network, x, y, classes)
    return x, y


def check_values(weights: PyTree, x: Any, y: Any, classes: int) -> None:
    """Raises `InputError` if weights or inputs are not finite, or labels are out of range.

    Under `jax.jit` values are unknown, and nothing is checked.

    Args:
      weights: a pytree of arrays.
      x: inputs, numbers `[samples, ...]`.
      y: labels, int `[samples]`.
      classes: number of classes.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((weights, x, y))):
        return
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights)):
        raise InputError("the network's weights hold NaN or infinite values")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        if not np.isfinite(np.asarray(x).astype(np.float32)).all():
            raise InputError("inputs hold NaN or infinite values")
    least, greatest = np.asarray(y).min(), np.asarray(y).max()
    if least < 0 or greatest >= classes:
        raise InputError(
            f"labels run from {least} to {greatest}, but the network has {classes} classes: 0..{classes - 1}"
        )
