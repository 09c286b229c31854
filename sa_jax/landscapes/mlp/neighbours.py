"""Lists of the kept branches that enter each unit, updated after each swap."""

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.hidden import FAN_IN_CHUNK
from sa_jax.landscapes.mlp.state import Ends, Neighbours


def neighbours_of(kept: jax.Array) -> Neighbours:
    """Returns the lists of one kernel, from its mask, bool `[inputs, outputs]`."""
    kept = kept.T
    dtype = jnp.int16 if kept.shape[1] < 2**15 else jnp.int32
    units = jnp.argsort(~kept, axis=1, stable=True).astype(dtype)
    return Neighbours(jnp.pad(units, ((0, 0), (0, -kept.shape[1] % FAN_IN_CHUNK))), kept.sum(1, dtype=jnp.int32))


def swapped_neighbours(neighbours: Neighbours, end: Ends, accepted: jax.Array) -> Neighbours:
    """Returns the lists after a swap; they are unchanged if it is not accepted, bool `[]`."""

    def update(_, neighbours):
        units, count = neighbours
        into, unit = end.unit_out[0], end.unit_in[0]
        prunes = accepted & end.here[0]
        last = count[into] - 1
        slot = jnp.where(units[into].astype(jnp.int32) == unit, jnp.arange(units.shape[1]), units.shape[1]).min()
        slot = jnp.where(prunes, jnp.minimum(slot, last), last)
        units = units.at[into, slot].set(units[into, last])
        count = count.at[into].add(-prunes.astype(jnp.int32))
        into, unit = end.unit_out[1], end.unit_in[1]
        grows = accepted & end.here[1]
        slot = jnp.where(grows, count[into], units.shape[1])
        units = units.at[into, slot].set(unit.astype(units.dtype), mode="drop")
        return Neighbours(units, count.at[into].add(grows.astype(jnp.int32)))

    return jax.lax.fori_loop(0, batch_bound((accepted & end.here.any()).astype(jnp.int32)), update, neighbours)
