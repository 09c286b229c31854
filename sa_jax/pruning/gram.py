"""A linear layer and the Gram matrix of its inputs: checks, damping, and the error of pruned outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.checks import native, number
from sa_jax.networks.arrays import as_numbers, jit
from sa_jax.types import InputError


def check_layer(weight: Any, gram: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a weight and a Gram matrix as arrays, after checking that they fit each other.

    Args:
      weight: real numbers `[outputs, inputs]`.
      gram: real numbers `[inputs, inputs]`.

    Returns:
      The weight, float32, and the Gram matrix; float16 and bfloat16 keep their type, all else becomes float32.

    Raises:
      InputError: not numbers, or wrong shapes; or, where it is not traced, not finite in float32, not symmetric,
        or a negative diagonal.
    """
    weight, gram = as_numbers("weight", weight), as_numbers("gram", gram)
    if weight.ndim != 2:
        raise InputError(f"weight must be [outputs, inputs], not of shape {list(weight.shape)}")
    inputs = weight.shape[1]
    if gram.shape != (inputs, inputs):
        raise InputError(f"gram must be [{inputs}, {inputs}] for this weight, not {list(gram.shape)}")
    _check_finite("weight", weight)
    _check_finite("gram", gram)
    half = gram.dtype in (jnp.float16, jnp.bfloat16)
    weight, gram = jnp.asarray(weight, jnp.float32), jnp.asarray(gram, gram.dtype if half else jnp.float32)
    if not isinstance(gram, Tracer):
        values = np.asarray(gram, np.float32)
        if np.abs(values - values.T).max(initial=0) > 1e-4 * max(np.abs(values).max(initial=0), 1e-30):
            raise InputError("gram must be symmetric: it is X' X of the layer's inputs X")
        if (np.diag(values) < 0).any():
            raise InputError("gram has negative entries on its diagonal: it is not X' X of any inputs X")
    return weight, gram


def _check_finite(name: str, values: Any) -> None:
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise InputError(f"{name} must be real numbers, not {values.dtype}")
    if isinstance(values, Tracer):
        return
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        if not np.isfinite(np.asarray(values, np.float32)).all():
            raise InputError(f"{name} has entries that are not finite")


def checked_mask(weight: jax.Array, mask: Any) -> jax.Array:
    """Returns a mask, bool `[outputs, inputs]`, after checking that it fits the weight.

    Args:
      weight: float `[outputs, inputs]`.
      mask: bool `[outputs, inputs]`.

    Raises:
      InputError: it is not of booleans, or has another shape.
    """
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.shape != weight.shape or mask.dtype != bool:
        found = f"{mask.dtype}{list(mask.shape)}"
        raise InputError(f"mask must be bool{list(weight.shape)} like the weight, not {found}")
    return jnp.asarray(mask)


def checked_damping(damping: Any) -> Any:
    """Returns a damping, unless it is traced after checking that it is a finite number of at least 0.

    Raises:
      InputError: it is not.
    """
    return damping if isinstance(damping, Tracer) else number("damping", damping, least=0)


def checked_correction(weight: jax.Array, dense_correction: Any) -> jax.Array:
    """Returns the dense correction, float32 `[outputs, inputs]`; zeros where there is none.

    Args:
      weight: float `[outputs, inputs]`.
      dense_correction: float `[outputs, inputs]`, or None; as in `prune_linear`.

    Raises:
      InputError: it has another shape, or entries that are not finite numbers.
    """
    if dense_correction is None:
        return jnp.zeros_like(weight)
    dense_correction = as_numbers("dense_correction", dense_correction)
    if dense_correction.shape != weight.shape:
        shapes = list(weight.shape), list(dense_correction.shape)
        raise InputError(f"dense_correction must be {shapes[0]} like the weight, not {shapes[1]}")
    _check_finite("dense_correction", dense_correction)
    return jnp.asarray(dense_correction, jnp.float32)


def damped(gram: jax.Array, damping: float) -> jax.Array:
    """Adds a share of its mean to the diagonal of a Gram matrix, `[inputs, inputs]`, against over-fitting.

    Args:
      gram: float `[inputs, inputs]`.
      damping: the share, at least 0.

    Returns:
      float32 `[inputs, inputs]`.

    Raises:
      InputError: a damping below 0.

    >>> damped(jnp.eye(2), 0.5)
    Array([[1.5, 0. ],
           [0. , 1.5]], dtype=float32)
    """
    gram, damping = jnp.asarray(as_numbers("gram", gram)), checked_damping(damping)
    ridge = (damping * jnp.diag(gram).mean()).astype(jnp.float32)
    return gram.astype(jnp.float32) + ridge * jnp.eye(gram.shape[0], dtype=jnp.float32)


@jit()
def layer_error(
    weight: jax.Array,
    gram: jax.Array,
    pruned: jax.Array,
    dense_correction: jax.Array | None = None,
    dense_gram: jax.Array | None = None,
) -> jax.Array:
    """Returns the squared error of a pruned layer's outputs, summed over all outputs and relative to their square.

    With `dense_correction`, the outputs are compared with those that the dense network had, on inputs with the
    Gram matrix `dense_gram`. For each output alone see `relative_error`.

    Args:
      weight: of the dense layer, float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pruned: the pruned weight, float `[outputs, inputs]`, with zeros.
      dense_correction: as in `prune_linear`.
      dense_gram: float `[inputs, inputs]`, of the dense network's inputs.

    Returns:
      float32 `[]`.

    >>> layer_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array(0.36, dtype=float32)
    """
    weight, gram, pruned = (jnp.asarray(values, jnp.float32) for values in (weight, gram, pruned))
    change = pruned - weight
    error, whole = (((values @ gram) * values).sum() for values in (change, weight))
    if dense_correction is not None and dense_gram is not None:
        dense_correction, dense_gram = (jnp.asarray(part, jnp.float32) for part in (dense_correction, dense_gram))
        # The error of the unpruned weight alone is the square of `W (X - D)'`.
        error += 2 * (dense_correction * (change + weight)).sum() - whole
        whole = ((weight @ dense_gram) * weight).sum()
        error = jnp.maximum(error + whole, 0.0)
    return error / jnp.where(whole > 0, whole, 1.0)


def relative_error(weight: jax.Array, gram: jax.Array, pruned: jax.Array) -> jax.Array:
    """Returns each output's squared error, relative to the squared output, of a pruned layer: float `[outputs]`.

    Args:
      weight: of the dense layer, float `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      pruned: the pruned weight, float `[outputs, inputs]`, with zeros.

    >>> relative_error(jnp.array([[3.0, 4.0]]), jnp.eye(2), jnp.array([[0.0, 4.0]]))
    Array([0.36], dtype=float32)
    """
    weight, gram, pruned = (jnp.asarray(native(values), jnp.float32) for values in (weight, gram, pruned))
    change = pruned - weight
    whole = ((weight @ gram) * weight).sum(1)
    return ((change @ gram) * change).sum(1) / jnp.where(whole > 0, whole, 1.0)
