"""Baselines for one linear layer, from its weight `[outputs, inputs]` and the moments of its inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.checks import number
from sa_jax.networks import patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import NM, Layer, Pattern, Unit
from sa_jax.pruning.gram import check_layer
from sa_jax.types import InputError

# RIA: power of the norms of the inputs, as in the paper.
RIA_POWER = 0.5
# Number of columns whose mask SparseGPT chooses at once, as in the paper.
BLOCK_COLUMNS = 128
# Largest number of swaps of a row, and the mean error at which they end, as in DSnoT.
DSNOT_SWAPS, DSNOT_ENOUGH = 50, 0.1


def magnitude(weight: jax.Array, density: float | Pattern) -> jax.Array:
    """Keeps the largest weights; blocks, columns and rows by the sum of their squares.

    Args:
      weight: float `[outputs, inputs]`.
      density: the share of the layer's weights that is kept, in (0, 1]; or a pattern such as `patterns.Unit(0.5)`.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: a density that is neither a pattern nor a number in (0, 1], or a pattern that does not fit.
    """
    weight = jnp.asarray(as_numbers("weight", weight), jnp.float32)
    return _best(weight**2, patterns.of_layer(density))


def wanda(weight: jax.Array, gram: jax.Array, density: float | Pattern) -> jax.Array:
    """Keeps the largest `|w| * norm(input)` (Wanda; Sun et al. 2024, equation 1).

    Blocks, columns and rows are compared by the sum of the squares.

    Args:
      weight: float `[outputs, inputs]`.
      gram: `X' X` of the layer's inputs `X`, or any multiple of it, float `[inputs, inputs]`.
      density: as in `magnitude`.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: as `magnitude` does, or a Gram matrix that does not fit the weight.
    """
    weight, gram = check_layer(weight, gram)
    return _best(weight**2 * jnp.diag(gram).astype(jnp.float32)[None], patterns.of_layer(density))


def ria(weight: jax.Array, gram: jax.Array, density: float | Pattern) -> jax.Array:
    """Keeps the largest weights relative to their row and their column (RIA; Zhang et al. 2024, "Plug-and-Play").

    The score is `(|w| / sum of its row + |w| / sum of its column) * norm(input)^0.5`, with sums of absolute
    weights. Blocks, columns and rows are compared by the sum of the squares. Arguments and result as in `wanda`,
    and the same errors.
    """
    weight, gram = check_layer(weight, gram)
    size = jnp.abs(weight)
    relative = sum(size / jnp.maximum(size.sum(axis, keepdims=True), 1e-30) for axis in (0, 1))
    norms = jnp.sqrt(jnp.diag(gram).astype(jnp.float32))
    return _best((relative * norms[None] ** RIA_POWER) ** 2, patterns.of_layer(density))


def sparsegpt(
    weight: jax.Array, gram: jax.Array, density: float | Pattern, damping: float = 0.01
) -> tuple[jax.Array, jax.Array]:
    """Prunes column by column and updates the later columns after each (SparseGPT; Frantar & Alistarh 2023).

    As in algorithm 1 of the paper, each block of 128 columns keeps the given share of its weights, over all rows
    together; N:M is chosen group by group.

    Args:
      weight: float `[outputs, inputs]`.
      gram: as in `wanda`.
      density: the share of the layer's weights that is kept, in (0, 1]; or `patterns.Layer` or `patterns.NM`.
      damping: share of the mean diagonal of the Gram matrix that is added to its diagonal, at least 0.

    Returns:
      The mask, bool `[outputs, inputs]`; and the updated weights, float32 `[outputs, inputs]`, 0 where pruned.

    Raises:
      InputError: another pattern, a Gram matrix that does not fit the weight, a damping below 0, or a Gram matrix
        that cannot be inverted with it. (Where that is traced, the result is Wanda's mask and the weights as they
        were.)
    """
    pattern = patterns.of_layer(density)
    if not isinstance(pattern, Layer | NM):
        raise InputError(f"SparseGPT prunes to a number such as 0.5, or to NM(2, 4), not to {pattern!r}")
    weight, gram = check_layer(weight, gram)
    damping = number("damping", damping, least=0)
    patterns.rule_of(pattern).blocks((weight.shape[0], weight.shape[1]))
    mask, updated, invertible = _sparsegpt(weight, gram.astype(jnp.float32), pattern, damping)
    if not isinstance(invertible, Tracer) and not invertible:
        raise InputError(f"gram cannot be inverted with a damping of {damping:g}: raise it, or use more samples")
    return mask, updated


@partial(jax.jit, static_argnames=("pattern", "damping"))
def _sparsegpt(weight, gram, pattern, damping):
    inputs = weight.shape[1]
    dead = jnp.diag(gram) == 0
    weight = jnp.where(dead[None], 0.0, weight)
    damped = gram + jnp.diag(jnp.where(dead, 1.0, 0.0) + damping * jnp.diag(gram).mean())
    inverse = jnp.linalg.cholesky(jnp.linalg.inv(damped), upper=True)
    invertible = jnp.isfinite(inverse).all()
    inverse = jnp.where(invertible, inverse, jnp.diag(jax.lax.rsqrt(jnp.diag(damped))))
    width = pattern.group if isinstance(pattern, NM) else min(BLOCK_COLUMNS, inputs)

    def choose(first, weight):
        """The mask of the next `width` columns, or of the last `width` columns where fewer are left."""
        start = jnp.minimum(first, inputs - width)
        columns = start + jnp.arange(width)
        scores = (weight[:, columns] / jnp.diag(inverse)[columns][None]) ** 2
        if isinstance(pattern, NM):
            return start, patterns.best(pattern, scores)
        open_ = jnp.broadcast_to(columns >= first, scores.shape)
        num_kept = jnp.round(pattern.density * open_.sum().astype(jnp.float32)).astype(jnp.int32)
        ranks = jnp.argsort(jnp.argsort(-jnp.where(open_, scores, -jnp.inf).ravel())).reshape(scores.shape)
        return start, (ranks < num_kept) & open_

    def one_column(column, carry):
        weight, mask = carry

        def chosen():
            start, found = choose(column, weight)
            before = jax.lax.dynamic_slice_in_dim(mask, start, width, 1)
            return jax.lax.dynamic_update_slice_in_dim(mask, found | (before & (start < column)), start, 1)

        mask = jax.lax.cond(column % width == 0, chosen, lambda: mask)
        error = jnp.where(mask[:, column], 0.0, weight[:, column]) / inverse[column, column]
        return weight - error[:, None] * inverse[column][None], mask

    updated, mask = jax.lax.fori_loop(0, inputs, one_column, (weight, jnp.zeros(weight.shape, bool)))
    return mask, jnp.where(mask, updated, 0.0), invertible


def dsnot(weight: jax.Array, gram: jax.Array, mean: jax.Array, density: Pattern) -> jax.Array:
    """Swaps weights of Wanda's mask to lower each output's mean error (DSnoT; Zhang et al. 2024, section 3).

    Each swap keeps the pruned weight that lowers the mean error most, relative to the variance of its input. It
    prunes, of the kept weights whose pruning lowers the mean error too, the weight with the least score of Wanda.
    Swaps of a row end when its mean error is below 0.1, or after 50 swaps.

    Args:
      weight: float `[outputs, inputs]`.
      gram: the mean of `x x'`, float `[inputs, inputs]`.
      mean: the mean of the inputs `x`, float `[inputs]`.
      density: `patterns.Unit`, the share of each row that is kept, or `patterns.NM`; swaps then stay within a
        group.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: a number or another pattern, or a Gram matrix or mean that does not fit the weight.
    """
    if not isinstance(density, Unit | NM):
        raise InputError(f"DSnoT prunes to a share of each row, Unit(0.5), or to NM(2, 4), not to {density!r}")
    weight, gram = check_layer(weight, gram)
    mean = as_numbers("mean", mean)
    if mean.shape != weight.shape[1:]:
        raise InputError(f"mean must be {list(weight.shape[1:])} for this weight, not {list(mean.shape)}")
    if not isinstance(mean, Tracer) and not np.isfinite(np.asarray(mean).astype(np.float32)).all():
        raise InputError("mean has entries that are not finite")
    start, mean = wanda(weight, gram, density), jnp.asarray(mean, jnp.float32)
    group = density.group if isinstance(density, NM) else None
    return _dsnot(weight, gram.astype(jnp.float32), mean, start, group)


@partial(jax.jit, static_argnames="group_size")
def _dsnot(weight, gram, mean, start, group_size):
    variance = jnp.maximum(jnp.diag(gram) - mean**2, 1e-12)
    group = jnp.arange(weight.shape[1]) // (group_size or weight.shape[1])

    def one_row(weight, mask):
        effect, score = weight * mean, jnp.abs(weight) * jnp.sqrt(jnp.diag(gram))

        def error_of(mask):
            return jnp.where(mask, 0.0, effect).sum()

        def swap(_, mask):
            error = error_of(mask)
            gain = jnp.sign(error) * effect
            grown = jnp.where(mask, -jnp.inf, gain / variance).argmax()
            prunable = mask & (gain < 0) & (group == group[grown])
            pruned = jnp.where(prunable, score, jnp.inf).argmin()
            swaps = (jnp.abs(error) > DSNOT_ENOUGH) & prunable.any() & (gain[grown] > 0) & ~mask.all()
            return jnp.where(swaps, mask.at[grown].set(True).at[pruned].set(False), mask)

        return jax.lax.fori_loop(0, DSNOT_SWAPS, swap, mask)

    return jax.vmap(one_row)(weight, start)


def _best(scores: jax.Array, pattern: Pattern) -> jax.Array:
    best = patterns.best(pattern, patterns.block_sums(pattern, scores))
    return patterns.expand(best, (scores.shape[0], scores.shape[1]))
