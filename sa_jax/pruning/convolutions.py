"""Prunes and refits convolutions as linear layers: each kernel as a matrix, each group as a matrix of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.inputs import check_key
from sa_jax.networks import patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import Block, Channels, Kernels, Layer, Pattern
from sa_jax.pruning.allocation import equal_counts
from sa_jax.pruning.gram import layer_error
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
    matrices, _ = check_convolution(kernel, gram)
    groups = len(matrices)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng_key, jnp.arange(groups)) if groups > 1 else rng_key[None]

    def choose(matrix, gram, pattern, key, correction):
        return prune_linear(key, matrix, gram, pattern, sweeps, dense_correction=correction)

    return choose_mask(choose, kernel, gram, density, keys, _corrections(matrices, dense_correction))


def choose_mask(
    choose: Callable[..., jax.Array],
    kernel: jax.Array,
    gram: jax.Array,
    density: float | Pattern,
    *more: jax.Array,
) -> jax.Array:
    """Returns the mask of a convolution that a function for linear layers chooses, group by group.

    Args:
      choose: called as `choose(weight, gram, pattern, *more)`, with a weight `[outputs, inputs]`; returns its
        mask. It is vmapped over groups.
      kernel: as in `prune_convolution`.
      gram: as in `prune_convolution`.
      density: as in `prune_convolution`.
      *more: more arguments of `choose`, `[groups, ...]`. Those of the shape of `as_matrices(kernel)` have an entry
        for each weight.

    Returns:
      The mask, bool, of the shape of the kernel.

    Raises:
      InputError: a kernel or a Gram matrix of another shape, or a pattern that does not fit.
    """
    matrices, grams = check_convolution(kernel, gram)
    groups, outputs, inputs = matrices.shape
    pattern, channels = patterns.of_layer(density), np.shape(kernel)[-2]
    places = inputs // channels
    if by_channel := isinstance(pattern, Kernels | Channels):
        pattern = Block((1 if isinstance(pattern, Kernels) else outputs, places), pattern.density)
        more = tuple(_reordered(one, places, channels) if one.shape == matrices.shape else one for one in more)
        matrices = _reordered(matrices, places, channels)
        grams = jnp.swapaxes(
            _reordered(jnp.swapaxes(_reordered(grams, places, channels), 1, 2), places, channels), 1, 2
        )

    def chosen(which: np.ndarray, pattern: Pattern) -> jax.Array:
        arguments = [one[which] for one in (matrices, grams, *more)]
        if len(which) == 1:
            weight, gram, *others = (one[0] for one in arguments)
            return choose(weight, gram, pattern, *others)[None]
        return jax.vmap(lambda weight, gram, *others: choose(weight, gram, pattern, *others))(*arguments)

    if isinstance(pattern, Layer) and groups > 1:
        size = outputs * inputs
        counts = np.asarray(equal_counts([size] * groups, round(pattern.density * groups * size)))
        if not counts.any():
            patterns.rule_of(pattern).blocks((outputs * groups, inputs))  # says what the least density is
        mask = jnp.zeros(matrices.shape, bool)
        for count in sorted(set(counts.tolist()) - {0}):
            which = np.flatnonzero(counts == count)
            mask = mask.at[which].set(chosen(which, Layer(count / size)))
    else:
        mask = chosen(np.arange(groups), pattern)
    return as_kernel(_reordered(mask, channels, places) if by_channel else mask, np.shape(kernel))


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


def _reordered(array: jax.Array, first: int, second: int) -> jax.Array:
    """Reorders the last axis, of `first` times `second` entries, so that `second` counts before `first`."""
    return jnp.take(array, np.arange(first * second).reshape(first, second).T.ravel(), axis=-1)


def error_of(
    kernel: jax.Array,
    gram: jax.Array,
    pruned: jax.Array,
    dense_correction: jax.Array | None = None,
    dense_gram: jax.Array | None = None,
) -> jax.Array:
    """Returns the squared error of a pruned convolution's outputs, relative to their square: see `layer_error`.

    Args:
      kernel: as in `prune_convolution`, of the dense layer.
      gram: as in `prune_convolution`.
      pruned: the pruned kernel.
      dense_correction: as in `prune_convolution`.
      dense_gram: of the dense network's inputs, of the shape of `gram`; needed with `dense_correction`.

    Returns:
      float32 `[]`.

    Raises:
      InputError: a kernel or a Gram matrix of another shape.
    """
    matrices, grams = check_convolution(kernel, gram)
    moved = as_matrices(jnp.asarray(pruned, jnp.float32), len(grams))
    corrected = dense_correction is not None and dense_gram is not None
    corrections = _corrections(matrices, dense_correction) if corrected else None
    wholes = jnp.asarray(dense_gram, jnp.float32).reshape(grams.shape) if corrected else grams
    errors = jax.vmap(layer_error)(matrices, grams, moved, corrections, wholes if corrected else None)
    squares = jnp.einsum("goi,gij,goj->g", matrices, wholes.astype(jnp.float32), matrices)
    return (errors * squares).sum() / jnp.where(squares.sum() > 0, squares.sum(), 1.0)
