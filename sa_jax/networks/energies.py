"""Energies (losses) of a network's outputs; lower is better. All map `(logits, labels, axis=-1)` to a scalar."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax.types import InputError

Energy = Callable[..., jax.Array]

# Up to this number of classes, elementwise operations in a loop take half the time of reductions on a CPU.
UNROLLED_CLASSES = 32


def check_energy(energy: Any) -> None:
    """Checks that a value is an energy.

    Raises:
      InputError: the value is no function of logits and targets.

    >>> check_energy("cross_entropy")
    Traceback (most recent call last):
    sa_jax.types.InputError: energy must be a function such as cross_entropy(), not 'cross_entropy'
    >>> check_energy(cross_entropy)
    Traceback (most recent call last):
    sa_jax.types.InputError: energy must be a function such as cross_entropy(), not cross_entropy itself
    """
    if not callable(energy):
        raise InputError(f"energy must be a function such as cross_entropy(), not {energy!r}")
    if energy in (cross_entropy, kl_to_teacher, margin_loss, error_rate):
        raise InputError(f"energy must be a function such as cross_entropy(), not {energy.__name__} itself")


# The energies are objects and not closures, so that native code can read their numbers. They compare by identity,
# like functions, because their numbers may be traced.


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """See `cross_entropy`."""

    logit_scale: jax.Array | float  # float32 []
    label_smoothing: float

    def __call__(self, logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
        """Returns the energy, float32 `[]`."""
        logits = logits * self.logit_scale
        others, largest = _softmax_sum(logits, axis)
        wanted = (1 - self.label_smoothing) * _of_label(logits, labels, axis)
        if self.label_smoothing:
            wanted += self.label_smoothing * logits.mean(axis)
        return _mean(others, jnp.log(others) + largest - wanted)


@dataclass(frozen=True, eq=False)
class KlToTeacher:
    """See `kl_to_teacher`."""

    logit_scale: jax.Array | float  # float32 []

    def __call__(self, logits: jax.Array, predictions: jax.Array, axis: int = -1) -> jax.Array:
        """Returns the energy, float32 `[]`."""
        logits = logits * self.logit_scale
        others, largest = _softmax_sum(logits, axis)
        # x log x, and 0 at 0.
        negative_entropy = -jax.scipy.special.entr(predictions).sum(axis)
        return _mean(others, negative_entropy + jnp.log(others) + largest - (predictions * logits).sum(axis))


@dataclass(frozen=True, eq=False)
class MarginLoss:
    """See `margin_loss`."""

    margin: jax.Array | float  # float32 []

    def __call__(self, logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
        """Returns the energy, float32 `[]`."""
        classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
        is_label = classes == jnp.expand_dims(labels, axis)
        largest_other = jnp.where(is_label, -jnp.inf, logits).max(axis)
        lacks = 1 - (_of_label(logits, labels, axis) - largest_other) / self.margin
        return jnp.mean(jnp.maximum(lacks, 0))


@dataclass(frozen=True, eq=False)
class ErrorRate:
    """See `error_rate`."""

    def __call__(self, logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
        """Returns the energy, float32 `[]`."""
        return jnp.mean((logits.argmax(axis) != labels).astype(jnp.float32))


def cross_entropy(logit_scale: jax.Array | float = 1.0, label_smoothing: float = 0.0) -> Energy:
    """Mean cross-entropy of the labels under `softmax(logit_scale * logits)`, in nats.

    Pruning shrinks the logits, and an unscaled cross-entropy spends branches on growing them again. The scale
    changes neither weights nor predictions.

    Args:
      logit_scale: positive factor on the logits.
      label_smoothing: share of each label that is spread evenly over all classes, from 0 to 1 (Szegedy et al.
        2016, section 7).

    Returns:
      `(logits, labels, axis=-1) -> energy`, with logits float `[samples, classes]` (`axis` is that of the
      classes), labels int `[samples]`, energy float32 `[]`.

    >>> cross_entropy()(jnp.zeros((3, 4)), jnp.array([0, 1, 2]))
    Array(1.3862944, dtype=float32)
    """
    return CrossEntropy(logit_scale, label_smoothing)


def kl_to_teacher(logit_scale: jax.Array | float = 1.0) -> Energy:
    """Mean Kullback-Leibler divergence of a network's predictions from a teacher's, in nats (Hinton et al. 2015).

    It needs no labels, so any inputs can be used.

    Args:
      logit_scale: positive factor on the network's logits.

    Returns:
      `(logits, predictions, axis=-1) -> energy`, both `[samples, classes]`; predictions are the probabilities of
      the teacher, energy is float32 `[]`.

    >>> logits = jnp.array([[1.0, 2.0, 3.0]])
    >>> abs(round(float(kl_to_teacher()(logits, jax.nn.softmax(logits))), 6))
    0.0
    """
    return KlToTeacher(logit_scale)


def margin_loss(margin: jax.Array | float = 1.0) -> Energy:
    """Mean multiclass hinge loss: how far each label's logit is from exceeding all others by a margin.

    Crammer & Singer 2001.

    Args:
      margin: the margin, positive, in units of the logits.

    Returns:
      `(logits, labels, axis=-1) -> energy`, shapes as in `cross_entropy`, energy in units of the margin.

    >>> margin_loss(2.0)(jnp.array([[1.0, 0.0, -3.0], [0.0, 1.0, 3.0]]), jnp.array([0, 2]))
    Array(0.25, dtype=float32)
    """
    return MarginLoss(margin)


def error_rate() -> Energy:
    """Share of misclassified samples; of equal logits, the lower class counts as the prediction.

    Returns:
      `(logits, labels, axis=-1) -> energy`, shapes as in `cross_entropy`, energy from 0 to 1.

    >>> error_rate()(jnp.eye(4), jnp.array([0, 1, 2, 2]))
    Array(0.25, dtype=float32)
    """
    return ErrorRate()


def _softmax_sum(logits, axis):
    """`exp(logits - largest)`, summed over the classes, and the largest logit."""
    if logits.shape[axis] > UNROLLED_CLASSES:
        largest = logits.max(axis)
        return jnp.exp(logits - jnp.expand_dims(largest, axis)).sum(axis), largest
    by_class = jnp.unstack(logits, axis=axis)
    largest = reduce(jnp.maximum, by_class)
    return sum(jnp.exp(row - largest) for row in by_class), largest


def _of_label(logits, labels, axis):
    if logits.shape[axis] > UNROLLED_CLASSES:
        classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
        return jnp.where(classes == jnp.expand_dims(labels, axis), logits, 0).sum(axis)
    by_class = jnp.unstack(logits, axis=axis)
    return sum(jnp.where(labels == label, row, 0) for label, row in enumerate(by_class))


def _mean(others, losses):
    # The sum is at least 1 or NaN. Without this select, XLA's CPU compiler hands the whole expression to a kernel
    # library if there are many samples, and takes half as long again.
    return jnp.mean(jnp.where(others > 0, losses, jnp.nan))
