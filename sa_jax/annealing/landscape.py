"""A landscape of any energy function on any pytree. Every proposal is evaluated in full."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.annealing.inputs import as_data, as_position, as_scalar, check_takes
from sa_jax.types import InputError, Landscape, PyTree, exportable


@exportable
class EnergyState(NamedTuple):
    """State of a landscape from `from_energy`: a position and its energy."""

    position: PyTree
    energy: jax.Array  # float32 or float64 []


def from_energy(
    energy_fn: Callable[..., jax.Array],
    move_fn: Callable[..., PyTree],
    draw: Callable[[jax.Array], PyTree] | None = None,
) -> Landscape:
    """Makes a landscape from an energy function and a move function. Both may be any jittable functions.

    The random bits of a move that depend on its key alone are drawn for a block of steps at once. They are the
    bits that the move would draw in each step: see `sa_jax.annealing.drawing.drawn_ahead`.

    Args:
      energy_fn: `(position, *data) -> energy`, a scalar; lower is better. A proposal of NaN energy is rejected.
      move_fn: `(rng_key, position) -> position` for a symmetric move (as likely as its reverse). For any other
        move, `(rng_key, position) -> (position, log_q_ratio)`, with
        `log_q_ratio = log q(old | new) - log q(new | old)`. The new position has the structure, shapes and dtypes
        of the old one.
      draw: `(rng_key) -> noise`, the random numbers of one move. `move_fn` then gets this noise in place of a key.
        With None `move_fn` draws them.

    Returns:
      A `Landscape` whose positions are the given pytrees.

    Raises:
      InputError: a function takes other arguments. Raised by `init` and `propose` of the landscape, so when
        `anneal` is called: the energy or the log ratio is not a real scalar, a leaf of the position is not an
        array, `data` is not a tuple, or the new position differs from the old one in structure, shape or dtype.

    >>> landscape = from_energy(lambda x: x**2, lambda rng_key, x: x + jax.random.normal(rng_key))
    >>> landscape.init(3.0, ()).energy
    Array(9., dtype=float32)
    """
    check_takes("move_fn", move_fn, "(rng_key, position)" if draw is None else "(noise, position)", 2)
    if draw is not None:
        check_takes("draw", draw, "(rng_key)", 1)

    def evaluate(position, data):
        data = as_data(data)
        check_takes("energy_fn", energy_fn, "(position, *data)", 1 + len(data))
        energy = as_scalar("the value of energy_fn", energy_fn(position, *data))
        return energy.astype(float_dtype(energy))

    def init(position, data):
        position = as_position(position)
        return EnergyState(position, evaluate(position, data))

    def propose(noise, state, temperature):
        del temperature
        moved = move_fn(noise, state.position)
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
        return moved, as_scalar("the log_q_ratio of move_fn", log_q_ratio).astype(jnp.float32)

    def delta(state, moved, data):
        energy = evaluate(moved, data)
        return energy - state.energy, energy

    def commit(state, moved, energy, accepted):
        proposed = EnergyState(moved, energy)
        return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposed, state)

    def refresh(state, data):
        return state._replace(energy=evaluate(state.position, data))

    return Landscape(init, draw or (lambda rng_key: rng_key), propose, delta, commit, refresh)


@jax.custom_batching.custom_vmap
def batch_bound(number: jax.Array) -> jax.Array:
    """Returns the bound of a loop, int32 `[]`; under `vmap`, the largest bound of all chains.

    So the bound stays a scalar under `vmap`. With a separate bound for each chain, XLA would copy the whole carry
    in every pass of the loop. The loop then runs too often for some chains: extra passes must not change them.

    Args:
      number: number of passes that this chain needs, int32 `[]`.
    """
    return number


@batch_bound.def_vmap
def _bound_of_batch(axis_size, in_batched, number):
    del axis_size, in_batched
    return batch_bound(number.max(0)), False


def float_dtype(values: jax.Array) -> Any:
    """Returns the dtype of energies that are computed from values: float64 for float64, float32 for all others.

    Args:
      values: an array of any shape.
    """
    return jnp.float64 if jnp.result_type(values) == jnp.float64 else jnp.float32
