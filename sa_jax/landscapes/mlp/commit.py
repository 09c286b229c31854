"""Updates the state after a proposal is accepted or rejected, and updates the best position."""

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.ends import ends
from sa_jax.landscapes.mlp.hidden import hidden_outputs
from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.neighbours import swapped_neighbours
from sa_jax.landscapes.mlp.state import MlpState, Pending, Weighted
from sa_jax.moves.base import Swap, swap_mask
from sa_jax.types import PyTree


def commit(layout: Layout, state: MlpState, swap: Swap, pending: Pending, accepted: jax.Array) -> MlpState:
    """Returns the state after the proposal; if not accepted, bool `[]`, only the scratch changes."""
    changes = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), pending.changes)
    # The position is written before it is read again. If it were read first, XLA would copy it.
    state = moved(layout, state, swap, accepted, pending.energy).with_cache(scratch=pending.scratch)
    return state.with_cache(outputs=_outputs(layout, state, swap, changes, pending, accepted))


def moved(layout: Layout, state: MlpState, swap: Swap, accepted: jax.Array, energy: jax.Array) -> MlpState:
    """Returns the state with the position, its energy and its lists after the proposal, but the old outputs.

    Args:
      layout: fixed part of the landscape.
      state: state before the proposal.
      swap: the proposal.
      accepted: whether it is accepted, bool `[]`.
      energy: energy of the proposed position, float32 `[]`.
    """
    swapped = accepted & swap.changes_mask
    fan_in = tuple(
        swapped_neighbours(neighbours, ends(layout, swap, layer), swapped)
        for layer, neighbours in enumerate(state.fan_in, 2)
    )
    position = swap_mask(mask_of(layout, state.position), swap, accepted)
    if layout.moves_weights:
        nudge = 0 if swap.nudge is None else jnp.where(accepted, swap.nudge, 0)
        position = Weighted(position, state.position.weights.at[swap.pruned].add(nudge))
    place = jnp.where(accepted, state.cache.num_notes, len(state.cache.notes))
    return state._replace(
        position=position,
        energy=jnp.where(accepted, energy, state.energy),
        swaps=layout.swaps.commit(state.swaps, swap, accepted),
        fan_in=fan_in,
    ).with_cache(
        notes=state.cache.notes.at[place].set(jnp.stack([swap.pruned, swap.grown]), mode="drop"),
        num_notes=state.cache.num_notes + accepted.astype(jnp.int32),
    )


def _outputs(layout, state, swap, changes, pending, accepted):
    """Returns the outputs of all layers after the proposal."""
    outputs = list(state.cache.outputs)
    if layout.head > 1:
        outputs = hidden_outputs(layout, state, swap, changes, pending.changed, accepted)
    if layout.head > 0:
        end = ends(layout, swap, 0)
        added = jnp.where(end.here[:, None], changes.at_ends, 0)
        outputs[0] = outputs[0].at[end.unit_out[0]].add(added[0]).at[end.unit_out[1]].add(added[1])
    times = batch_bound(accepted.astype(jnp.int32))
    outputs[-1] = jax.lax.fori_loop(
        0, times, lambda _, logits: jnp.where(accepted, pending.logits, logits), outputs[-1]
    )
    return tuple(outputs)


def remember(best: PyTree, state: MlpState, improved: jax.Array) -> tuple[PyTree, MlpState]:
    """Returns the best position and the state; if improved, bool `[]`, the best position is the state's position.

    The function repeats the swaps noted since the last best position. If notes are missing, it copies the
    position.
    """
    complete = state.cache.num_notes <= len(state.cache.notes)

    def repeat(i, best):
        # Under vmap, a chain without a new best position runs the same loop as one that has a new best. It then
        # writes nothing.
        noted = improved & complete & (i < state.cache.num_notes)

        def set_both(best, now):
            branches = jnp.where(noted, state.cache.notes[i], best.size)
            return best.at[branches].set(now[branches], mode="drop")

        return jax.tree.map(set_both, best, state.position)

    def copy(_, best):
        copied = improved & ~complete
        return jax.tree.map(lambda best, now: jnp.where(copied, now, best), best, state.position)

    best = jax.lax.fori_loop(
        0, batch_bound(jnp.where(improved & complete, state.cache.num_notes, 0)), repeat, best
    )
    best = jax.lax.fori_loop(0, batch_bound((improved & ~complete).astype(jnp.int32)), copy, best)
    return best, state.with_cache(num_notes=jnp.where(improved, 0, state.cache.num_notes))
