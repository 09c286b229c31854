"""Baselines for one linear layer, on its weight `[outputs, inputs]` and what is known of its inputs."""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.networks import patterns
from sa_jax.networks.patterns import Pattern
from sa_jax.pruning.linear import check_layer
from sa_jax.types import InputError

# Columns whose mask SparseGPT chooses at once, as there.
BLOCK_COLUMNS = 128
# Swaps of a row, and the mean error at which they end, as in DSnoT.
DSNOT_SWAPS, DSNOT_ENOUGH = 50, 0.1


def magnitude(weight: jax.Array, pattern: Pattern | str | float) -> jax.Array:
    """Keeps the largest weights, blocks or whole columns or rows by the sum of their squares.

    Args:
      weight: float `[outputs, inputs]`.
      pattern: see `patterns.parse`.

    Returns:
      The mask, bool `[outputs, inputs]`.
    """
    return _best(weight**2, pattern)


def wanda(weight: jax.Array, gram: jax.Array, pattern: Pattern | str | float) -> jax.Array:
    """Keeps the largest `|w| * norm(input)` (Wanda; Sun et al. 2024, equation 1), squared and summed over units.

    Args:
      weight: float `[outputs, inputs]`.
      gram: `X' X` or any multiple of it, float `[inputs, inputs]`.
      pattern: see `patterns.parse`.

    Returns:
      The mask, bool `[outputs, inputs]`.
    """
    check_layer(weight, gram)
    return _best(weight**2 * jnp.diag(gram), pattern)


@partial(jax.jit, static_argnames=("pattern", "damping"))
def sparsegpt(
    weight: jax.Array, gram: jax.Array, pattern: Pattern | str | float, damping: float = 0.01
) -> tuple[jax.Array, jax.Array]:
    """Prunes column by column, those not yet reached making up for each (SparseGPT; Frantar & Alistarh 2023).

    As in algorithm 1 there, a density is that of each block of 128 columns, over all rows, and N:M is chosen group
    by group.

    Args:
      weight: float `[outputs, inputs]`.
      gram: as `wanda` takes it.
      pattern: a density or N:M.
      damping: what is added to the diagonal, as a share of its mean.

    Returns:
      The mask, bool `[outputs, inputs]`; and the weights moved, float32 `[outputs, inputs]`, 0 where the mask is.

    Raises:
      InputError: another pattern.
    """
    check_layer(weight, gram)
    pattern = patterns.parse(pattern)
    if pattern.block != (1, 1) or pattern.whole_layer:
        raise InputError("SparseGPT prunes to a density such as 0.5, or N:M such as '2:4'")
    pattern.units((weight.shape[0], weight.shape[1]))
    inputs = weight.shape[1]
    dead = jnp.diag(gram) == 0
    weight = jnp.where(dead, 0.0, weight.astype(jnp.float32))
    damped = gram + jnp.diag(jnp.where(dead, 1.0, 0.0) + damping * jnp.diag(gram).mean())
    inverse = jnp.linalg.cholesky(jnp.linalg.inv(damped), upper=True)
    width = pattern.group or min(BLOCK_COLUMNS, inputs)

    def choose(first, weight):
        """The mask of the next `width` columns; the last ones have neighbours on their left in question again."""
        start = jnp.minimum(first, inputs - width)
        columns = start + jnp.arange(width)
        scores = (weight[:, columns] / jnp.diag(inverse)[columns]) ** 2
        if pattern.group is not None:
            return start, patterns.best(pattern, scores)
        open_ = jnp.broadcast_to(columns >= first, scores.shape)
        kept = jnp.round((pattern.density or 1.0) * open_.sum()).astype(jnp.int32)
        ranks = jnp.argsort(jnp.argsort(-jnp.where(open_, scores, -jnp.inf).ravel())).reshape(scores.shape)
        return start, (ranks < kept) & open_

    def one_column(column, carry):
        weight, mask = carry

        def chosen():
            start, found = choose(column, weight)
            before = jax.lax.dynamic_slice_in_dim(mask, start, width, 1)
            return jax.lax.dynamic_update_slice_in_dim(mask, found | (before & (start < column)), start, 1)

        mask = jax.lax.cond(column % width == 0, chosen, lambda: mask)
        error = jnp.where(mask[:, column], 0.0, weight[:, column]) / inverse[column, column]
        return weight - error[:, None] * inverse[column], mask

    moved, mask = jax.lax.fori_loop(0, inputs, one_column, (weight, jnp.zeros(weight.shape, bool)))
    return mask, jnp.where(mask, moved, 0.0)


@partial(jax.jit, static_argnames="pattern")
def dsnot(weight: jax.Array, gram: jax.Array, mean: jax.Array, pattern: Pattern | str | float) -> jax.Array:
    """Swaps weights of Wanda's mask to bring each output's mean error down (DSnoT; Zhang et al. 2024, section 3).

    A pruned weight comes back that lowers the mean error most, over the variance of its input; a kept one goes
    that lowers it too, the least by Wanda's score; until the mean error is below 0.1 or 50 swaps are made.

    Args:
      weight: float `[outputs, inputs]`.
      gram: the mean of `x x'`, float `[inputs, inputs]`.
      mean: of the inputs, float `[inputs]`.
      pattern: a density of each row, or N:M, within whose groups the swaps then stay.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: another pattern.
    """
    pattern = patterns.parse(pattern)
    if pattern.block != (1, 1) or pattern.whole_layer:
        raise InputError("DSnoT prunes to a density such as 0.5, or N:M such as '2:4'")
    start = wanda(weight, gram, pattern)
    variance = jnp.maximum(jnp.diag(gram) - mean**2, 1e-12)
    group = jnp.arange(weight.shape[1]) // (pattern.group or weight.shape[1])

    def one_row(weight, mask):
        effect, score = weight * mean, jnp.abs(weight) * jnp.sqrt(jnp.diag(gram))

        def error_of(mask):
            return jnp.where(mask, 0.0, effect).sum()

        def swap(_, mask):
            error = error_of(mask)
            gain = jnp.sign(error) * effect
            grown = jnp.where(mask, -jnp.inf, gain / variance).argmax()
            may_go = mask & (gain < 0) & (group == group[grown])
            pruned = jnp.where(may_go, score, jnp.inf).argmin()
            does = (jnp.abs(error) > DSNOT_ENOUGH) & may_go.any() & (gain[grown] > 0) & ~mask.all()
            return jnp.where(does, mask.at[grown].set(True).at[pruned].set(False), mask)

        return jax.lax.fori_loop(0, DSNOT_SWAPS, swap, mask)

    return jax.vmap(one_row)(weight, start)


def _best(scores, pattern):
    pattern = patterns.parse(pattern)
    return patterns.of_weights(pattern, patterns.best(pattern, patterns.sums(pattern, scores)), scores.shape)
