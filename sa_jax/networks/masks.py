"""Masks over the branches of a network: flat or one per kernel, with exactly `k` ones.

In flat form the branches of all kernels `[inputs, outputs]` follow each other, layer by layer and row by
row, so that the branches which leave one unit lie side by side.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.networks.trees import leaf_name, leaves_by_name, no_such_leaf
from sa_jax.types import InputError, PyTree


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


@jax.jit
def by_score(scores: jax.Array, kept: jax.Array | int) -> jax.Array:
    """Keeps the `kept` branches of highest score; ties go to the lower index, NaN counts as lowest.

    The least score that stays is found by bisection of its bits: exact, and a tenth of the time of sorting.

    Args:
      scores: float `[total]`, taken as float32; absolute weights give global magnitude pruning.
      kept: number of ones, at most `total`; may be traced.

    Returns:
      A flat mask, bool `[total]`.

    >>> by_score(jnp.array([0.1, 3.0, 2.0, 3.0]), 2)
    Array([False,  True, False,  True], dtype=bool)
    """
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores).astype(jnp.float32)
    scores = jnp.where(scores == 0, 0.0, scores)  # no negative zero
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)  # as the floats are

    def halve(_, ends):
        low, high = ends  # at least `kept` scores from low on, fewer from high on
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = (ordered >= middle).sum() >= kept
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    limits = jnp.iinfo(jnp.int32)
    nothing = 0 * (ordered.sum() + kept)  # inside `shard_map` the ends vary over the mesh as these do
    ends = jnp.int32(limits.min) + nothing, jnp.int32(limits.max) + nothing
    least, _ = jax.lax.fori_loop(0, 32, halve, ends)
    above, tied = ordered > least, ordered == least
    return above | (tied & (jnp.cumsum(tied) <= kept - above.sum()))


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


def unflatten_like(flat: jax.Array, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Splits a flat array `[total]` into one of the shape of each of some arrays, by their names."""
    parts, start = {}, 0
    for name, array in arrays.items():
        parts[name] = flat[start : start + math.prod(array.shape)].reshape(array.shape)
        start += math.prod(array.shape)
    return parts


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Sets the pruned weights to zero; all other parameters stay as they are.

    Args:
      params: any pytree of arrays.
      masks: bool, of the kernels' shapes: nested like `params`, as `prune` and its siblings return them, or by the
        kernels' paths, such as `{"Dense_0/kernel": mask}`. Kernels without a mask stay as they are.

    Returns:
      Of the structure of the params.

    Raises:
      InputError: a mask of no array of the params, or of another shape.

    >>> params = {"fc": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    >>> apply_masks(params, {"fc": {"kernel": jnp.array([[True, False]])}})["fc"]["kernel"].tolist()
    [[1.0, 0.0]]
    """
    leaves, by_name = leaves_by_name(params), leaves_by_name(masks)
    for name, mask in by_name.items():
        if name not in leaves:
            raise InputError(no_such_leaf(name, leaves))
        if jnp.shape(mask) != jnp.shape(leaves[name]):
            shapes = list(jnp.shape(leaves[name])), list(jnp.shape(mask))
            raise InputError(f"the mask of {name!r} must have its shape, {shapes[0]}, not {shapes[1]}")

    def one(path, leaf):
        mask = by_name.get(leaf_name(path))
        return leaf if mask is None else jnp.where(mask, leaf, 0)

    return jax.tree_util.tree_map_with_path(one, params)


def effective(mask: jax.Array, shapes: Sequence[tuple[int, int]]) -> jax.Array:
    """The kept branches that lie on a path of kept branches from an input to an output.

    All others end at a dead unit, which nothing feeds or which feeds nothing; how many are left is the effective
    sparsity's numerator (Vysogorets & Kempe 2023, Connectivity Matters, section 3). Biases make no path.

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
    return flatten([kernel & before[:, None] & after for kernel, before, after in ends])


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Branches in both of two masks, bool `[total]`, as a share of those in either; 1 if both are empty.

    >>> jaccard(np.array([True, True, False]), np.array([False, True, True]))
    0.3333333333333333
    """
    either = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / either) if either else 1.0


class Overlap(NamedTuple):
    """How alike several masks are, over all pairs of them.

    Attributes:
      jaccard_mean: of `jaccard`, 1 where all are the same.
      jaccard_min: of the pair least alike.
      jaccard_max: of the pair most alike.
      hamming_mean: branches in one mask only, as a share of those in both counted together: 0 same, 1 disjoint.
      hamming_min: of the pair most alike.
      hamming_max: of the pair least alike.
      jaccard_of_random: to be expected of two masks as large, drawn independently and uniformly.
    """

    jaccard_mean: float
    jaccard_min: float
    jaccard_max: float
    hamming_mean: float
    hamming_min: float
    hamming_max: float
    jaccard_of_random: float


def overlap(masks: np.ndarray) -> Overlap:
    """Compares each pair of several masks with as many ones.

    Args:
      masks: bool `[masks, total]`, two or more, with some ones.

    >>> found = overlap(np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool))
    >>> [round(float(share), 3) for share in found]
    [0.556, 0.333, 1.0, 0.333, 0.0, 0.5, 0.2]
    """
    kept = np.count_nonzero(masks[0])
    pairs = list(itertools.combinations(masks, 2))
    alike = [jaccard(first, second) for first, second in pairs]
    apart = [float(np.count_nonzero(first ^ second) / (2 * kept)) for first, second in pairs]
    density = float(kept / masks.shape[1])  # of a random mask's branches, as many are in another
    of_alike, of_apart = ((float(np.mean(shares)), min(shares), max(shares)) for shares in (alike, apart))
    return Overlap(*of_alike, *of_apart, density / (2 - density))
