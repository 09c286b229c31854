"""Removes dead units from a pruned network: fewer units, the same outputs."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sa_jax.networks import masks
from sa_jax.networks.mlp import ACTIVATIONS, Network, check_activation
from sa_jax.types import InputError


class Cleaned(NamedTuple):
    """A pruned network in which every hidden unit has a kept input and a kept output.

    Attributes:
      kernels: one float32 `[inputs, outputs]` per layer, 0 where pruned.
      masks: one bool `[inputs, outputs]` per layer. The inputs of the network and its outputs are never removed.
      biases: one float32 `[outputs]` per layer.
      activation: activation between layers, one of `mlp.ACTIVATIONS`.
    """

    kernels: tuple[np.ndarray, ...]  # float32 [inputs, outputs]
    masks: tuple[np.ndarray, ...]  # bool [inputs, outputs]
    biases: tuple[np.ndarray, ...]  # float32 [outputs]
    activation: str


def clean(network: Network, mask: np.ndarray, activation: str = "relu") -> Cleaned:
    """Removes dead hidden units, those without kept inputs or without kept outputs, until none is left.

    A unit without inputs has the same output for every sample, the activation of its bias. Times the weights of
    its outgoing branches, this is added to the biases of the next layer. The outputs of the network stay the same,
    up to the rounding of sums.

    Args:
      network: the weights.
      mask: flat mask, bool `[total]`.
      activation: activation between layers, one of `mlp.ACTIVATIONS`.

    Raises:
      InputError: a mask that does not fit, weights that are not finite, or an unknown activation.

    >>> network = Network((np.ones((2, 2), np.float32), np.ones((2, 1), np.float32)), (None, None))
    >>> [kernel.shape for kernel in clean(network, np.array([1, 0, 1, 0, 1, 1], bool)).kernels]
    [(2, 1), (1, 1)]
    """
    check_activation(activation)
    if np.shape(mask) != (network.total,):
        raise InputError(f"the mask must have the shape [{network.total}], not {list(np.shape(mask))}")
    kept = [np.asarray(part, bool) for part in masks.unflatten(jnp.asarray(mask), network.shapes)]
    kernels = [np.where(m, np.asarray(w, np.float32), 0) for m, w in zip(kept, network.kernels, strict=True)]
    # In float64, so that sums are rounded once.
    biases = [
        np.zeros(kernel.shape[1]) if bias is None else np.asarray(bias, np.float64)
        for kernel, bias in zip(kernels, network.biases, strict=True)
    ]
    _check_finite(kernels, biases)
    changed = True
    while changed:
        changed = False
        for layer in range(len(kernels) - 1):
            fed, feeding = kept[layer].any(0), kept[layer + 1].any(1)
            stays = fed & feeding
            if stays.all():
                continue
            changed = True
            constant = np.asarray(ACTIVATIONS[activation](jnp.asarray(biases[layer], jnp.float32)), np.float64)
            biases[layer + 1] = biases[layer + 1] + (constant * ~fed) @ kernels[layer + 1].astype(np.float64)
            kernels[layer], kept[layer] = kernels[layer][:, stays], kept[layer][:, stays]
            kernels[layer + 1], kept[layer + 1] = kernels[layer + 1][stays], kept[layer + 1][stays]
            biases[layer] = biases[layer][stays]
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        rounded = tuple(bias.astype(np.float32) for bias in biases)
    return check_finite(Cleaned(tuple(kernels), tuple(kept), rounded, activation))


def check_finite(cleaned: Cleaned) -> Cleaned:
    """Returns a network, after checking that all its weights and biases are finite.

    Raises:
      InputError: some are not.
    """
    _check_finite(cleaned.kernels, cleaned.biases)
    return cleaned


def _check_finite(*arrays: Iterable[np.ndarray]) -> None:
    if not all(np.isfinite(array).all() for array in itertools.chain(*arrays)):
        raise InputError("the network's weights hold NaN or infinite values")


def predict(cleaned: Cleaned, x: np.ndarray) -> np.ndarray:
    """Returns the logits, float32 `[samples, classes]`, for inputs, float `[samples, features]`."""
    values = jnp.asarray(x, jnp.float32)
    for layer, (kernel, bias) in enumerate(zip(cleaned.kernels, cleaned.biases, strict=True)):
        values = ACTIVATIONS[cleaned.activation](values) if layer else values
        values = jnp.dot(values, kernel, precision="highest") + jnp.asarray(bias)[None]
    return np.asarray(values)
