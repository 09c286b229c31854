"""Masks over the branches of a network, flat or one per kernel, with exactly `k` ones.

A flat mask has the branches of all kernels `[inputs, outputs]`, layer by layer and row by row. The branches that
leave one unit are thus neighbours.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import checks
from sa_jax.networks.arrays import as_arrays, jit
from sa_jax.networks.trees import leaf_name, leaves_by_name, no_such_leaf
from sa_jax.types import InputError, PyTree


def num_kept(density: Any, total: int) -> int:
    """Returns the number of kept branches, `round(density * total)`.

    Args:
      density: kept / total, above 0 and at most 1.
      total: number of branches.

    Raises:
      InputError: the density is out of range, or so low that it keeps no branch.

    >>> num_kept(0.02, 32_360)
    647
    """
    kept = round(checks.number("density", density, above=0, most=1) * total)
    if kept == 0:
        raise InputError(
            f"density {density} keeps 0 of {total} branches; the least that keeps one is {1 / total:.2g}"
        )
    return kept


def random(rng_key: jax.Array, total: int, num_kept: int) -> jax.Array:
    """Returns a uniformly random flat mask, bool `[total]`, with exactly `num_kept` ones."""
    return by_score(jax.random.uniform(rng_key, (total,), jnp.float32), num_kept)


@jit()
def by_score(scores: jax.Array, num_kept: jax.Array | int) -> jax.Array:
    """Keeps the `num_kept` branches of highest score; of equal scores the lower index, and NaN counts as lowest.

    The lowest kept score is found by bisection of its bits: exact, in a tenth of the time of sorting.

    Args:
      scores: float `[total]`, taken as float32; absolute weights give global magnitude pruning.
      num_kept: number of ones, at most `total`; may be traced.

    Returns:
      A flat mask, bool `[total]`.

    >>> by_score(jnp.array([0.1, 3.0, 2.0, 3.0]), 2)
    Array([False,  True, False,  True], dtype=bool)
    """
    scores, num_kept = jnp.asarray(scores, jnp.float32), jnp.asarray(num_kept, jnp.int32)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    scores = jnp.where(scores == 0, 0.0, scores)  # no negative zero
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)  # ordered like the floats

    def halve(_, ends):
        low, high = ends  # at least num_kept scores are >= low, fewer are >= high
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = (ordered >= middle).sum(dtype=jnp.int32) >= num_kept
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    limits = jnp.iinfo(jnp.int32)
    # Inside `shard_map` the ends must vary over the mesh like these.
    nothing = 0 * (ordered.sum(dtype=jnp.int32) + num_kept)
    ends = jnp.int32(limits.min) + nothing, jnp.int32(limits.max) + nothing
    least, _ = jax.lax.fori_loop(0, 32, halve, ends)
    above, tied = ordered > least, ordered == least
    return above | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= num_kept - above.sum(dtype=jnp.int32)))


def erk_counts(shapes: Sequence[tuple[int, int]], num_kept: int) -> list[int]:
    """Returns the number of kept branches of each kernel for Erdos-Renyi-Kernel (ERK) densities.

    A layer's density is proportional to `(inputs + outputs) / (inputs * outputs)`. A layer whose density would
    exceed 1 is kept whole, and the others share the rest (Mocanu et al. 2018; Evci et al. 2020, section 3).

    Args:
      shapes: `(inputs, outputs)` of each kernel.
      num_kept: total number of kept branches.

    >>> erk_counts([(784, 300), (300, 100), (100, 10)], 3000)
    [2040, 753, 207]
    """
    sizes = [inputs * outputs for inputs, outputs in shapes]
    whole: set[int] = set()
    while True:
        rest = num_kept - sum(sizes[layer] for layer in whole)
        units = sum(sum(shape) for layer, shape in enumerate(shapes) if layer not in whole)
        shares = [rest * sum(shape) / units if units else 0.0 for shape in shapes]
        full = {layer for layer, share in enumerate(shares) if layer not in whole and share >= sizes[layer]}
        if not full:
            break
        whole |= full
    counts = [size if layer in whole else int(shares[layer]) for layer, size in enumerate(sizes)]
    by_remainder = sorted(set(range(len(sizes))) - whole, key=lambda layer: int(shares[layer]) - shares[layer])
    for layer in by_remainder[: num_kept - sum(counts)]:
        counts[layer] += 1
    return counts


def flatten(kernel_masks: Sequence[jax.Array]) -> jax.Array:
    """Joins one mask per kernel, each `[inputs, outputs]`, in network order, to a flat mask `[total]`."""
    return jnp.concatenate([jnp.ravel(mask) for mask in kernel_masks])


def unflatten(flat: jax.Array, shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Splits a flat array `[total]` into one array `[inputs, outputs]` per kernel; the inverse of `flatten`.

    >>> [part.shape for part in unflatten(jnp.ones(10, bool), [(2, 3), (2, 2)])]
    [(2, 3), (2, 2)]
    """
    parts, start = [], 0
    for inputs, outputs in shapes:
        parts.append(flat[start : start + inputs * outputs].reshape(inputs, outputs))
        start += inputs * outputs
    return parts


def unflatten_like(flat: jax.Array, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Splits a flat array `[total]` into one array of the shape of each given array, by their names."""
    parts, start = {}, 0
    for name, array in arrays.items():
        parts[name] = flat[start : start + math.prod(array.shape)].reshape(array.shape)
        start += math.prod(array.shape)
    return parts


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Sets the pruned weights to zero; all other parameters stay as they are.

    Args:
      params: any pytree of arrays.
      masks: bool, of the kernels' shapes: nested like `params`, as `prune` and `prune_kernels` return them, or by
        the kernels' paths, such as `{"Dense_0/kernel": mask}`. Kernels without a mask stay as they are.

    Returns:
      The params with the same structure.

    Raises:
      InputError: the masks are not a tree, a mask has an unknown name, another shape or a dtype but bool, or the
        two arguments are swapped.

    >>> params = {"fc": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    >>> apply_masks(params, {"fc": {"kernel": jnp.array([[True, False]])}})["fc"]["kernel"].tolist()
    [[1.0, 0.0]]
    """
    if masks is None or isinstance(masks, str | os.PathLike):
        raise InputError(f"masks must be nested like the params, not {masks!r}; files.put_back takes a path")
    leaves, by_name = leaves_by_name(params), leaves_by_name(masks)
    if leaves and all(map(_is_boolean, leaves.values())) and not any(map(_is_boolean, by_name.values())):
        raise InputError("params holds masks, and masks does not: call apply_masks(params, masks)")
    for name, mask in by_name.items():
        if name not in leaves:
            raise InputError(no_such_leaf(name, leaves))
        if np.shape(mask) != np.shape(leaves[name]):
            shapes = list(np.shape(leaves[name])), list(np.shape(mask))
            raise InputError(f"the mask of {name!r} must have its shape, {shapes[0]}, not {shapes[1]}")
        if not _is_boolean(mask):
            raise InputError(f"the mask of {name!r} must be boolean, not {_dtype(mask)}")

    def one(path, leaf):
        name = leaf_name(path)
        mask = by_name.get(name)
        return leaf if mask is None else jnp.where(mask, as_arrays(f"{name!r} in params", leaf), 0)

    return jax.tree_util.tree_map_with_path(one, params)


def _is_boolean(leaf: Any) -> bool:
    return _dtype(leaf) == "bool"


def _dtype(leaf: Any) -> str:
    return str(getattr(leaf, "dtype", type(leaf).__name__))


def effective(mask: jax.Array, shapes: Sequence[tuple[int, int]]) -> jax.Array:
    """Returns the effective branches: kept branches on a path of kept branches from an input to an output.

    All other kept branches touch a dead unit, one without kept inputs or without kept outputs (Vysogorets & Kempe
    2023, Connectivity Matters, section 3). Biases are not part of a path.

    Args:
      mask: flat, bool `[total]`.
      shapes: `(inputs, outputs)` of each kernel.

    Returns:
      A flat mask, bool `[total]`.

    >>> effective(jnp.array([True, False, True, False, False, True]), [(2, 2), (2, 1)])
    Array([False, False, False, False, False, False], dtype=bool)
    >>> effective(jnp.array([True, False, False, True, False, True]), [(2, 2), (2, 1)])
    Array([False, False, False,  True, False,  True], dtype=bool)
    """
    kernels = unflatten(mask, shapes)
    fed, feeding = [jnp.ones(shapes[0][0], bool)], [jnp.ones(shapes[-1][1], bool)]
    for kernel in kernels:
        fed.append((kernel & fed[-1][:, None]).any(0))
    for kernel in reversed(kernels):
        feeding.append((kernel & feeding[-1]).any(1))
    ends = zip(kernels, fed[:-1], feeding[-2::-1], strict=True)
    return flatten([kernel & before[:, None] & after[None] for kernel, before, after in ends])


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard index of two masks, bool `[total]`: branches in both as a share of branches in either.

    It is 1 if both masks are empty.

    >>> jaccard(np.array([True, True, False]), np.array([False, True, True]))
    0.3333333333333333
    """
    either = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / either) if either else 1.0


class Overlap(NamedTuple):
    """Similarity of several masks, over all pairs.

    Attributes:
      jaccard_mean: mean of `jaccard` over the pairs; 1 if all masks are the same.
      jaccard_min: `jaccard` of the least similar pair.
      jaccard_max: `jaccard` of the most similar pair.
      hamming_mean: mean Hamming distance of a pair, divided by the number of ones in both masks together: 0 if all
        masks are the same, 1 if they are disjoint.
      hamming_min: that of the most similar pair.
      hamming_max: that of the least similar pair.
      jaccard_of_random: expected `jaccard` of two random masks with the same number of ones.
    """

    jaccard_mean: float
    jaccard_min: float
    jaccard_max: float
    hamming_mean: float
    hamming_min: float
    hamming_max: float
    jaccard_of_random: float


def overlap(masks: np.ndarray) -> Overlap:
    """Compares all pairs of several masks with the same number of ones.

    Args:
      masks: bool `[masks, total]`, two masks or more, each with one kept branch or more.

    >>> found = overlap(np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool))
    >>> [round(float(share), 3) for share in found]
    [0.556, 0.333, 1.0, 0.333, 0.0, 0.5, 0.2]
    """
    num_kept = np.count_nonzero(masks[0])
    pairs = list(itertools.combinations(masks, 2))
    alike = [jaccard(first, second) for first, second in pairs]
    apart = [float(np.count_nonzero(first ^ second) / (2 * num_kept)) for first, second in pairs]
    density = float(num_kept / masks.shape[1])  # the share of a random mask's branches that is in another one
    of_alike, of_apart = ((float(np.mean(shares)), min(shares), max(shares)) for shares in (alike, apart))
    return Overlap(*of_alike, *of_apart, density / (2 - density))
