"""SparseSwaps: the best swap of each row, one after another, until none lowers the row's error.

A row of `W` has the error `r' H r` of `sa_jax.landscapes.linear`, with `r = M * w - w` and `g = H r`. To prune p
and keep q instead changes it by

    w_p^2 H_pp - 2 w_p g_p  +  w_q^2 H_qq + 2 w_q g_q  -  2 w_p w_q H_pq.

The last term is kept as a table of all kept and pruned weights, in which a swap changes one row and one column.
So a step adds two vectors to this table and takes the lowest sum: the exact best swap, without a look-up in `H`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.baselines.linear import wanda
from sa_jax.checks import whole
from sa_jax.landscapes.linear import pruning_errors
from sa_jax.networks import patterns
from sa_jax.networks.patterns import NM, Pattern, Unit
from sa_jax.pruning.gram import check_layer, checked_correction, checked_mask
from sa_jax.types import InputError

# Number of swaps after which `g` is computed again, against rounding.
REFRESHED = 64
# Least decrease of the error that a swap must make, as a share of the summed errors of the pruned weights one by
# one. It is above the rounding of float32, so that the swaps end.
LEAST_DECREASE = 1e-6
# A bound on the swaps of a row, for each of its inputs. Real layers make less than one.
SWAPS_PER_INPUT = 10


class Rows(NamedTuple):
    """Rows whose swaps are made together.

    Attributes:
      weight: weights of the rows.
      squares: `w_j^2 H_jj`.
      least: least decrease that a swap must make.
      correction: the dense correction.
      kept: columns of the kept weights of each group.
      pruned: columns of the pruned weights of each group.
      joint: `-2 w_p w_q H_pq` of each pair of a kept and a pruned weight.
    """

    weight: jax.Array  # float32 [rows, inputs]
    squares: jax.Array  # float32 [rows, inputs]
    least: jax.Array  # float32 [rows]
    correction: jax.Array  # float32 [rows, inputs]
    kept: jax.Array  # int32 [rows, groups, num_kept]
    pruned: jax.Array  # int32 [rows, groups, num_pruned]
    joint: jax.Array  # float32 [rows, groups, num_kept, num_pruned]


def sparse_swaps(
    weight: jax.Array,
    gram: jax.Array,
    density: Pattern,
    dense_correction: jax.Array | None = None,
    start: jax.Array | None = None,
    max_swaps: int | None = None,
    row_batch: int = 1,
) -> jax.Array:
    """Makes the best swap of each row until no swap lowers its error (SparseSwaps; Zimmer et al. 2025).

    Each step compares all pairs of a kept and a pruned weight of the row; for N:M, all pairs within its groups. No
    weight changes. We had the abstract of the paper, not its text: the table of the pairs, the least decrease of a
    swap and the end at an optimum are ours.

    Args:
      weight: float `[outputs, inputs]`.
      gram: `X' X` of the layer's inputs `X`, or any multiple of it, float `[inputs, inputs]`.
      density: `patterns.Unit` or `patterns.NM`.
      dense_correction: as in `prune_linear`.
      start: the mask to start from, bool `[outputs, inputs]`; None for Wanda's.
      max_swaps: largest number of swaps of a row, at least 0; None for as many as lower its error.
      row_batch: number of rows that are swapped together; it changes results by no more than rounding. One is
        fastest on a CPU, more on an accelerator.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: another pattern, a start that does not keep what the pattern keeps (where it is not traced), a
        Gram matrix or dense correction that does not fit the weight, or a number out of range.
    """
    if not isinstance(density, Unit | NM):
        raise InputError(
            f"SparseSwaps prunes to a share of each row, Unit(0.5), or to NM(2, 4), not to {density!r}"
        )
    weight, gram = check_layer(weight, gram)
    dense_correction = checked_correction(weight, dense_correction)
    rule, (outputs, inputs) = patterns.rule_of(density), weight.shape
    rule.blocks((outputs, inputs))
    size = rule.set_size((outputs, inputs))
    num_kept = rule.num_kept_of(size)
    start = wanda(weight, gram, density) if start is None else checked_mask(weight, start)
    if not isinstance(start, Tracer):
        counts = np.asarray(start).reshape(-1, size).sum(1)
        if (counts != num_kept).any():
            found = counts[counts != num_kept][0]
            raise InputError(f"start must keep {num_kept} of each {size} weights for {density}, not {found}")
    batch = min(whole("row_batch", row_batch, 1), outputs)
    limit = SWAPS_PER_INPUT * inputs if max_swaps is None else whole("max_swaps", max_swaps)
    if num_kept == size:
        return start
    return _sparse_swaps(weight, gram, dense_correction, start, jnp.int32(limit), size, num_kept, batch)


@partial(jax.jit, static_argnames=("size", "num_kept", "batch"))
def _sparse_swaps(weight, gram, dense_correction, start, limit, size, num_kept, batch):
    outputs, inputs = weight.shape
    gram = gram.astype(jnp.float32)

    def one_batch(rows):
        weight, correction, start = rows
        squares = pruning_errors(weight, gram).reshape(weight.shape)
        columns = jnp.argsort(~start.reshape(batch, -1, size), axis=2, stable=True).astype(jnp.int32)
        columns = columns + jnp.arange(0, inputs, size, dtype=jnp.int32)[None, :, None]
        kept, pruned = columns[..., :num_kept], columns[..., num_kept:]
        joint = -2 * gram[kept[..., None], pruned[..., None, :]]
        joint *= _of(weight, kept)[..., None] * _of(weight, pruned)[..., None, :]
        least = LEAST_DECREASE * jnp.where(start, 0.0, squares).sum(1)
        return _kept(_swapped(Rows(weight, squares, least, correction, kept, pruned, joint), gram, limit))

    # Rows of zeros fill the last batch; they have nothing to swap.
    filling = ((0, -outputs % batch), (0, 0))
    filled = (jnp.pad(values, filling).reshape(-1, batch, inputs) for values in (weight, dense_correction))
    start = jnp.pad(start, filling, mode="edge").reshape(-1, batch, inputs)
    return jax.lax.map(one_batch, (*filled, start)).reshape(-1, inputs)[:outputs]


def _swapped(rows, gram, limit):
    """The rows after their swaps. Each round starts with exact fields; the swaps end with a round without any."""

    def one_round(carry):
        rows, count, _ = carry
        removed = jnp.where(_kept(rows), 0.0, -rows.weight)
        fields = removed @ gram + rows.correction

        def go_on(carry):
            _, _, step, improved = carry
            return improved & (step < jnp.minimum(REFRESHED, limit - count))

        def one_swap(carry):
            rows, fields, step, _ = carry
            rows, fields, improved = _best_swap(rows, fields, gram)
            any_improved = improved.any()
            return rows, fields, step + any_improved.astype(jnp.int32), any_improved

        rows, _, steps, _ = jax.lax.while_loop(go_on, one_swap, (rows, fields, jnp.int32(0), jnp.bool_(True)))
        return rows, count + steps, steps

    first = rows, jnp.int32(0), jnp.int32(1)
    return jax.lax.while_loop(lambda carry: (carry[2] > 0) & (carry[1] < limit), one_round, first)[0]


def _best_swap(rows, fields, gram):
    """Makes the best swap of each row where it lowers the error; returns too where it does."""
    each = jnp.arange(len(fields))
    num_kept = rows.kept.shape[2]
    change = 2 * rows.weight * fields
    growing = _of(rows.squares + change, rows.pruned)
    changes = _of(rows.squares - change, rows.kept) + (growing[:, :, None] + rows.joint).min(3)
    changes = changes.reshape(len(each), -1)
    found = changes.argmin(1).astype(jnp.int32)
    group, slot = found // num_kept, found % num_kept
    place = (growing[each, group] + rows.joint[each, group, slot]).argmin(1).astype(jnp.int32)
    improved = changes[each, found] < -rows.least

    p, q = rows.kept[each, group, slot], rows.pruned[each, group, place]
    w_p, w_q = rows.weight[each, p], rows.weight[each, q]
    moved = w_q[:, None] * gram[q] - w_p[:, None] * gram[p]
    fields = fields + jnp.where(improved[:, None], moved, 0.0)
    # Where nothing improves, the same branches are written again.
    p, q = jnp.where(improved, q, p), jnp.where(improved, p, q)
    kept, pruned = rows.kept.at[each, group, slot].set(p), rows.pruned.at[each, group, place].set(q)
    joint = rows.joint.at[each, group, slot].set(_joint(rows.weight, gram, p, pruned[each, group]))
    joint = joint.at[each, group, :, place].set(_joint(rows.weight, gram, q, kept[each, group]))
    return rows._replace(kept=kept, pruned=pruned, joint=joint), fields, improved


def _joint(weight, gram, branch, others):
    """`-2 w_b w_o H_bo` of a branch of each row, int32 `[rows]`, and others, int32 `[rows, others]`."""
    each = jnp.arange(len(branch))
    weights = weight[each, branch][:, None] * weight[each[:, None], others]
    return -2 * weights * gram[branch[:, None], others]


def _of(values, columns):
    """The values, `[rows, inputs]`, of columns, int32 `[rows, groups, columns]`."""
    return values[jnp.arange(len(values))[:, None, None], columns]


def _kept(rows):
    each = jnp.arange(len(rows.weight))[:, None, None]
    return jnp.zeros(rows.weight.shape, bool).at[each, rows.kept].set(True)
