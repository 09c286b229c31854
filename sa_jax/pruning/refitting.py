"""Refits the kept weights of a pruned linear layer, in closed form."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.pruning.gram import check_layer, checked_correction, checked_damping, checked_mask, damped


class Refitted(NamedTuple):
    """A pruned layer with refitted weights.

    Attributes:
      weight: the new weight, 0 where the branch is pruned.
      solved: False for each row that keeps its weights, because its equations do not have one solution: no input
        ever reached its kept branches, or its kept inputs depend on each other and the damping is too small.
    """

    weight: jax.Array  # float32 [outputs, inputs]
    solved: jax.Array  # bool [outputs]


def refit(
    weight: jax.Array,
    gram: jax.Array,
    mask: jax.Array,
    damping: float = 0.01,
    dense_correction: jax.Array | None = None,
) -> jax.Array:
    """Refits the kept weights of a pruned layer to the outputs of the dense layer, by ridge regression.

    In closed form, without the derivative of any loss: of each row, `argmin (v - w)' H (v - w) + d |v - w|^2` over
    all `v` that are 0 where the branch is pruned, with `d` a share of the mean of `H_jj` (Hoerl & Kennard 1970).
    Faster where the mask is not traced: each row then solves only for as many weights as the fullest row keeps.

    A row whose equations do not have one solution keeps its weights, and so does a weight whose input is always 0.
    A warning counts such rows where they are not traced; `refit_layer` says which.

    Args:
      weight: float `[outputs, inputs]`, of the dense layer.
      gram: float `[inputs, inputs]`.
      mask: bool `[outputs, inputs]`.
      damping: the share, at least 0. At 0 the kept inputs of a row must not depend on each other.
      dense_correction: as in `prune_linear`.

    Returns:
      The new weight, float32 `[outputs, inputs]`, finite, and 0 where the branch is pruned.

    Raises:
      InputError: a Gram matrix that does not fit the weight, or is none, see `check_layer`; a mask or a dense
        correction that does not fit; or a damping below 0.
    """
    found = refit_layer(weight, gram, mask, damping, dense_correction)
    if not isinstance(found.solved, Tracer) and not found.solved.all():
        left = np.flatnonzero(~np.asarray(found.solved))
        some = ", ".join(map(str, left[:5])) + (", ..." if len(left) > 5 else "")
        warnings.warn(
            f"{len(left)} of {len(found.solved)} rows keep their weights, because their equations do not have one "
            f"solution: rows {some}; use more samples or more damping",
            stacklevel=2,
        )
    return found.weight


def refit_layer(
    weight: jax.Array,
    gram: jax.Array,
    mask: jax.Array,
    damping: float = 0.01,
    dense_correction: jax.Array | None = None,
) -> Refitted:
    """Refits the kept weights as `refit` does, and says which rows keep their weights.

    Arguments as in `refit`, and the same errors.

    >>> weight, mask = jnp.array([[3.0, 4.0]]), jnp.array([[True, False]])
    >>> refit_layer(weight, jnp.zeros((2, 2)), mask)
    Refitted(weight=Array([[3., 0.]], dtype=float32), solved=Array([False], dtype=bool))
    """
    weight, gram = check_layer(weight, gram)
    mask, damping = checked_mask(weight, mask), checked_damping(damping)
    max_kept_per_row = mask.shape[1] if isinstance(mask, Tracer) else max(int(mask.sum(1).max(initial=0)), 1)
    dense_correction = checked_correction(weight, dense_correction)
    return Refitted(*_refit(weight, gram, dense_correction, mask, damping, max_kept_per_row))


@partial(jax.jit, static_argnames="max_kept_per_row")
def _refit(weight, gram, dense_correction, mask, damping, max_kept_per_row):
    ridge, gram = damped(gram, damping), gram.astype(jnp.float32)
    reached = jnp.diag(gram) > 0

    def solve(args):
        weight, dense_correction, mask = args
        removed = gram @ jnp.where(mask, 0.0, weight) - dense_correction
        columns = jnp.argsort(~mask, stable=True)[:max_kept_per_row]
        kept = (mask & reached)[columns]
        unit = jnp.eye(max_kept_per_row, dtype=jnp.float32)
        among = jnp.where(kept[:, None] & kept[None], ridge[columns][:, columns], unit)
        wanted = jnp.where(kept, removed[columns], 0.0)
        step = jax.scipy.linalg.solve(among, wanted, assume_a="pos")
        # The exact step lowers the damped error; that of a singular matrix is NaN, or so large that it may not.
        lowers = step @ (among @ step - 2 * wanted) <= 0
        solved = lowers & jnp.isfinite(step).all() & (kept.any() | ~mask.any())
        step = jnp.where(kept & solved, step, 0.0)
        return jnp.where(mask, weight, 0.0).at[columns].add(step), solved

    return jax.lax.map(solve, (weight, dense_correction, mask))
