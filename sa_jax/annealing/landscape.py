"""The landscape of any function on any pytree, by full evaluation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.types import InputError, Landscape, PyTree


class EnergyState(NamedTuple):
    """A position and its energy, a floating-point scalar of at least 32 bits."""

    position: PyTree
    energy: jax.Array  # float32 or float64 []


def from_energy(energy_fn: Callable[..., jax.Array], move_fn: Callable[..., PyTree]) -> Landscape:
    """Makes a landscape of an energy and a move, each any jittable function.

    Args:
      energy_fn: `(position, *data) -> energy`, a scalar; lower is better. A NaN is never accepted.
      move_fn: `(rng_key, position) -> position`, symmetric (as likely as its reverse), or
        `-> (position, log_q_ratio)` with `log_q_ratio = log q(old | new) - log q(new | old)`. The new
        position has the structure, shapes and dtypes of the old one.

    Returns:
      A `Landscape` whose position is the pytree itself.

    Raises:
      InputError: when annealed, if the energy is not a scalar or the moved position differs from the
        position in structure, shape or dtype.

    >>> landscape = from_energy(lambda x: x**2, lambda rng_key, x: x + jax.random.normal(rng_key))
    >>> landscape.init(3.0, ()).energy
    Array(9., dtype=float32)
    """

    def evaluate(position, data):
        energy = jnp.asarray(energy_fn(position, *data))
        if energy.shape != ():
            raise InputError(f"energy_fn must return a scalar, not an array of shape {energy.shape}")
        return energy.astype(jnp.promote_types(energy.dtype, jnp.float32))

    def init(position, data):
        position = jax.tree.map(_as_array, position)
        return EnergyState(position, evaluate(position, data))

    def propose(rng_key, state, temperature):
        del temperature
        moved = move_fn(rng_key, state.position)
        expected = jax.tree.structure(state.position)
        if jax.tree.structure(moved) == expected:
            log_q_ratio = jnp.zeros((), jnp.float32)
        elif isinstance(moved, tuple) and len(moved) == 2 and jax.tree.structure(moved[0]) == expected:
            moved, log_q_ratio = moved
        else:
            raise InputError(
                f"move_fn must return a position, {expected}, or (position, log_q_ratio), "
                f"not {jax.tree.structure(moved)}"
            )
        for path, old in jax.tree_util.tree_leaves_with_path(state.position):
            new = dict(jax.tree_util.tree_leaves_with_path(moved))[path]
            if jnp.shape(new) != old.shape or jnp.result_type(new) != old.dtype:
                raise InputError(
                    f"move_fn must keep shape and dtype of position{jax.tree_util.keystr(path)}: "
                    f"{old.dtype}{list(old.shape)} became {jnp.result_type(new)}{list(jnp.shape(new))}"
                )
        return moved, jnp.asarray(log_q_ratio, jnp.float32)

    def delta(state, moved, data):
        energy = evaluate(moved, data)
        return energy - state.energy, energy

    def commit(state, moved, energy, accepted):
        proposed = EnergyState(moved, energy)
        return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposed, state)

    def refresh(state, data):
        return state._replace(energy=evaluate(state.position, data))

    return Landscape(init, lambda rng_key: rng_key, propose, delta, commit, refresh)


@jax.custom_batching.custom_vmap
def batch_bound(number: jax.Array) -> jax.Array:
    """A loop's bound, int32 `[]`, under vmap the greatest of all chains, so that it stays one number.

    With a bound of its own for each chain, every pass of the loop would copy all that it carries. The loop's
    body must do no harm to a chain that has had its passes.
    """
    return number


@batch_bound.def_vmap
def _bound_of_batch(axis_size, in_batched, number):
    del axis_size, in_batched
    return batch_bound(number.max(0)), False


def _as_array(leaf):
    # A Python number becomes a weakly typed array, and a scan's carry must not change its type.
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf
