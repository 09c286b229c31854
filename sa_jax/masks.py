"""Masks over the branches of a network: flat or one per kernel, with exactly `k` ones.

In flat form the branches of all kernels `[inputs, outputs]` follow each other, layer by layer and row by
row, so that the branches which leave one unit lie side by side.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.types import InputError


def num_kept(density: Any, total: int) -> int:
    """Returns `round(density * total)`, the number of branches that stay.

    Args:
      density: kept / total, in (0, 1].
      total: number of branches.

    Raises:
      InputError: density is outside (0, 1], or so low that no branch would stay.

    >>> num_kept(0.02, 32_360)
    647
    """
    value = density.item() if hasattr(density, "item") and np.ndim(density) == 0 else density
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"density must be a number in (0, 1], not {density!r}")
    kept = round(value * total)
    if kept == 0:
        raise InputError(
            f"density {density} keeps 0 of {total} branches; the least that keeps one is {1 / total:.2g}"
        )
    return kept


def random(rng_key: jax.Array, total: int, kept: int) -> jax.Array:
    """Returns a uniformly random flat mask, bool `[total]`, with exactly `kept` ones."""
    return by_score(jax.random.uniform(rng_key, (total,)), kept)


def by_score(scores: jax.Array, kept: int) -> jax.Array:
    """Keeps the `kept` branches of highest score; ties go to the lower index.

    Args:
      scores: float `[total]`; absolute weights give global magnitude pruning.
      kept: number of ones, at most `total`.

    Returns:
      A flat mask, bool `[total]`.

    >>> by_score(jnp.array([0.1, 3.0, 2.0, 3.0]), 2)
    Array([False,  True, False,  True], dtype=bool)
    """
    highest_first = jnp.argsort(-scores, stable=True)
    return jnp.zeros(scores.shape, bool).at[highest_first[:kept]].set(True)


def erk_counts(shapes: Sequence[tuple[int, int]], kept: int) -> list[int]:
    """How many branches of each kernel stay under Erdos-Renyi-Kernel densities, `kept` in all.

    A layer's density is proportional to `(inputs + outputs) / (inputs * outputs)`; layers that it would fill
    are kept whole, and the others share the rest (Mocanu et al. 2018; Evci et al. 2020, section 3).

    Args:
      shapes: `(inputs, outputs)` of each kernel.
      kept: number of ones in all.

    >>> erk_counts([(784, 300), (300, 100), (100, 10)], 3000)
    [2040, 753, 207]
    """
    sizes = [inputs * outputs for inputs, outputs in shapes]
    whole: set[int] = set()
    while True:
        rest = kept - sum(sizes[layer] for layer in whole)
        units = sum(sum(shape) for layer, shape in enumerate(shapes) if layer not in whole)
        shares = [rest * sum(shape) / units if units else 0.0 for shape in shapes]
        full = {layer for layer, share in enumerate(shares) if layer not in whole and share >= sizes[layer]}
        if not full:
            break
        whole |= full
    counts = [size if layer in whole else int(shares[layer]) for layer, size in enumerate(sizes)]
    by_remainder = sorted(set(range(len(sizes))) - whole, key=lambda layer: int(shares[layer]) - shares[layer])
    for layer in by_remainder[: kept - sum(counts)]:
        counts[layer] += 1
    return counts


def flatten(kernel_masks: Sequence[jax.Array]) -> jax.Array:
    """Joins one mask per kernel, each `[inputs, outputs]` in network order, to a flat mask `[total]`."""
    return jnp.concatenate([jnp.ravel(mask) for mask in kernel_masks])


def unflatten(flat: jax.Array, shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Splits a flat array `[total]` into one array `[inputs, outputs]` per kernel; undoes `flatten`.

    >>> [part.shape for part in unflatten(jnp.ones(10, bool), [(2, 3), (2, 2)])]
    [(2, 3), (2, 2)]
    """
    parts, start = [], 0
    for inputs, outputs in shapes:
        parts.append(flat[start : start + inputs * outputs].reshape(inputs, outputs))
        start += inputs * outputs
    return parts
