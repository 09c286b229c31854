"""Prunes and refits convolutions as linear layers: each kernel as a matrix, each group as a matrix of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.inputs import check_key
from sa_jax.networks import patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import Block, Channels, Kernels, Layer, Pattern
from sa_jax.pruning.allocation import equal_counts
from sa_jax.pruning.linear import prune_linear
from sa_jax.pruning.refitting import Refitted, refit_layer
from sa_jax.types import InputError


def as_matrices(kernel: jax.Array, groups: int = 1) -> jax.Array:
    """Returns a kernel as one matrix for each group.

    Args:
      kernel: `[*sizes, channels / groups, outputs]`, as Flax and Keras store it.
      groups: number of groups.

    Returns:
      `[groups, outputs / groups, inputs]`. The inputs have the order of the kernel: places first, then channels.

    >>> as_matrices(jnp.zeros((3, 3, 4, 8)), groups=2).shape
    (2, 4, 36)
    """
    *_, outputs = kernel.shape
    return jnp.moveaxis(kernel.reshape(-1, groups, outputs // groups), 0, -1)


def as_kernel(matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns matrices, as `as_matrices` makes them, as a kernel of a shape.

    >>> kernel = jnp.arange(24.0).reshape(3, 1, 2, 4)
    >>> bool((as_kernel(as_matrices(kernel, groups=2), kernel.shape) == kernel).all())
    True
    """
    return jnp.moveaxis(matrices, -1, 0).reshape(shape)


def prune_convolution(
    rng_key: jax.Array,
    kernel: jax.Array,
    gram: jax.Array,
    density: float | Pattern = 0.5,
    sweeps: float = 2.0,
    dense_correction: jax.Array | None = None,
) -> jax.Array:
    """Prunes a convolution by annealing its mask on the squared error of its outputs, as `prune_linear` does.

    Args:
      rng_key: a key, `[]`.
      kernel: float `[*sizes, channels / groups, outputs]`, as Flax and Keras store it.
      gram: Gram matrix of the patches, as `Moments.gram` has it: float `[inputs, inputs]`, or
        `[groups, inputs, inputs]` of a grouped convolution, with the inputs of one output.
      density: the share of the layer's weights that is kept, in (0, 1], equal in all groups up to rounding; or a
        pattern, which holds in each group.
      sweeps: as in `prune_linear`.
      dense_correction: as in `prune_linear`, float `[outputs, inputs]` or `[groups, outputs / groups, inputs]`.

    Returns:
      The mask, bool, of the shape of the kernel.

    Raises:
      InputError: a kernel or a Gram matrix of another shape, or as `prune_linear` says.

    >>> from sa_jax.pruning.moments import Convolution, no_patches, with_patches
    >>> image = jax.random.normal(jax.random.key(0), (10, 8, 8, 4))
    >>> moments = with_patches(no_patches(Convolution((3, 3)), 4), image, Convolution((3, 3)))
    >>> kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 6))
    >>> mask = prune_convolution(jax.random.key(2), kernel, moments.gram, patterns.Kernels(0.25))
    >>> mask.shape, sorted(set(mask.sum((0, 1)).ravel().tolist()))  # whole slices of 9 weights
    ((3, 3, 4, 6), [0, 9])
    """
    check_key(rng_key)
    matrices, grams = check_convolution(kernel, gram)
    groups, outputs, inputs = matrices.shape
    corrections = _corrections(matrices, dense_correction)
    pattern = patterns.of_layer(density)
    channels = np.shape(kernel)[-2]
    if by_channel := isinstance(pattern, Kernels | Channels):
        places = inputs // channels
        pattern = Block((1 if isinstance(pattern, Kernels) else outputs, places), pattern.density)
        matrices, grams, corrections = (
            _swapped_order(one, places, channels, axes)
            for one, axes in ((matrices, (-1,)), (grams, (-1, -2)), (corrections, (-1,)))
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng_key, jnp.arange(groups)) if groups > 1 else rng_key[None]

    def pruned(chosen: Any, pattern: Pattern) -> jax.Array:
        def one(key, matrix, gram, correction):
            return prune_linear(key, matrix, gram, pattern, sweeps, dense_correction=correction)

        if len(chosen) == 1:
            (group,) = chosen
            return one(keys[group], matrices[group], grams[group], corrections[group])[None]
        return jax.vmap(one)(keys[chosen], matrices[chosen], grams[chosen], corrections[chosen])

    if isinstance(pattern, Layer):
        size = outputs * inputs
        counts = np.asarray(equal_counts([size] * groups, round(pattern.density * groups * size)))
        if not counts.any():
            patterns.rule_of(pattern).blocks((outputs * groups, inputs))  # says what the least density is
        mask = jnp.zeros(matrices.shape, bool)
        for count in sorted(set(counts.tolist()) - {0}):
            chosen = np.flatnonzero(counts == count)
            mask = mask.at[chosen].set(pruned(chosen, Layer(count / size)))
    else:
        mask = pruned(np.arange(groups), pattern)
    if by_channel:
        mask = _swapped_order(mask, channels, inputs // channels, (-1,))
    return as_kernel(mask, np.shape(kernel))


def refit_convolution(
    kernel: jax.Array,
    gram: jax.Array,
    mask: jax.Array,
    damping: float = 0.01,
    dense_correction: jax.Array | None = None,
) -> Refitted:
    """Refits the kept weights of a pruned convolution in closed form, as `refit_layer` does.

    Args:
      kernel: as in `prune_convolution`, of the dense layer.
      gram: as in `prune_convolution`.
      mask: bool, of the shape of the kernel.
      damping: as in `refit`.
      dense_correction: as in `prune_convolution`.

    Returns:
      The new kernel, of the same shape; and `solved`, bool `[outputs]`.

    Raises:
      InputError: shapes that do not fit, or as `refit` says.
    """
    matrices, grams = check_convolution(kernel, gram)
    if np.shape(mask) != np.shape(kernel):
        raise InputError(f"mask must be {list(np.shape(kernel))}, as the kernel, not {list(np.shape(mask))}")
    masks, corrections = as_matrices(jnp.asarray(mask), len(grams)), _corrections(matrices, dense_correction)
    if len(grams) == 1:
        found = refit_layer(matrices[0], grams[0], masks[0], damping, corrections[0])
        return Refitted(as_kernel(found.weight[None], np.shape(kernel)), found.solved)
    found = jax.vmap(refit_layer, (0, 0, 0, None, 0))(matrices, grams, masks, damping, corrections)
    return Refitted(as_kernel(found.weight, np.shape(kernel)), found.solved.ravel())


def check_convolution(kernel: Any, gram: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a kernel and the Gram matrix of its patches by group, after checking that they fit each other.

    Args:
      kernel: as in `prune_convolution`.
      gram: as in `prune_convolution`.

    Returns:
      The matrices, float32 `[groups, outputs / groups, inputs]`, and the Gram matrices, float
      `[groups, inputs, inputs]`.

    Raises:
      InputError: another shape.
    """
    kernel, gram = as_numbers("kernel", kernel), as_numbers("gram", gram)
    if kernel.ndim < 3:
        raise InputError(f"kernel must be [*sizes, channels, outputs], not of shape {list(kernel.shape)}")
    *sizes, outputs = kernel.shape
    inputs = int(np.prod(sizes))
    grams = gram[None] if gram.ndim == 2 else gram
    if grams.ndim != 3 or grams.shape[1:] != (inputs, inputs):
        raise InputError(
            f"gram must be [{inputs}, {inputs}] or [groups, {inputs}, {inputs}] for a kernel "
            f"{list(kernel.shape)}, not {list(gram.shape)}"
        )
    if outputs % len(grams):
        raise InputError(f"{len(grams)} groups do not divide {outputs} outputs")
    return as_matrices(jnp.asarray(kernel, jnp.float32), len(grams)), jnp.asarray(grams)


def _corrections(matrices: jax.Array, dense_correction: Any) -> jax.Array:
    if dense_correction is None:
        return jnp.zeros(matrices.shape, jnp.float32)
    correction = as_numbers("dense_correction", dense_correction)
    if correction.ndim == 2:
        correction = correction[None]
    if correction.shape != matrices.shape:
        raise InputError(
            f"dense_correction must be {list(matrices.shape)}, as the matrices, not {list(correction.shape)}"
        )
    return jnp.asarray(correction, jnp.float32)


def _swapped_order(array: jax.Array, first: int, second: int, axes: tuple[int, ...]) -> jax.Array:
    """Reorders axes of `first` times `second` entries, so that `second` counts before `first`."""
    order = np.arange(first * second).reshape(first, second).T.ravel()
    for axis in axes:
        array = jnp.take(array, order, axis=axis)
    return array
