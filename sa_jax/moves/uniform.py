"""Swaps drawn uniformly: over the whole network, or within sets of branches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.moves.base import SwapProposal, below, commit_slots, swap_of_slots


class UniformState(NamedTuple):
    """All branches, the kept ones first.

    Attributes:
      order: flat indices, first of the kept branches, then of the pruned, int32 `[total]`.
      num_kept: number of kept branches, int32 `[]`.
    """

    order: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Flat indices of the kept branches in slots below `num_kept`, int32 of the shape of `slots`."""
        return self.order[slots]


class WithinState(NamedTuple):
    """Branches set by set, and in each first those that are kept.

    Attributes:
      order: int32 `[total]`.
      num_kept: of all sets together, int32 `[]`.
      kept_slots: where in `order` the kept branches stand, then the others, int32 `[total]`.
      kept_in_set: int32 `[sets]`.
    """

    order: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []
    kept_slots: jax.Array  # int32 [total]
    kept_in_set: jax.Array  # int32 [sets]

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Flat indices of the kept branches in slots below `num_kept`, int32 of the shape of `slots`."""
        return self.order[self.kept_slots[slots]]


def uniform_swap() -> SwapProposal:
    """Swaps a uniformly drawn kept branch with a uniformly drawn pruned one, over all layers.

    Symmetric: the reverse swap uses the same two slots of the index list. With nothing pruned, or nothing
    kept, it stays in place.
    """

    def init(mask):
        kept_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
        return UniformState(kept_first, mask.sum(dtype=jnp.int32))

    def draw(rng_key):
        return jax.random.bits(rng_key, (2,), jnp.uint32)

    def propose(noise, state, mask):
        del mask
        num_pruned = state.order.size - state.num_kept
        kept_slot = below(noise[0], state.num_kept)
        pruned_slot = state.num_kept + below(noise[1], num_pruned)
        return swap_of_slots(state, kept_slot, pruned_slot, num_pruned)

    return SwapProposal(init, draw, propose, commit_slots)


def swap_within(sets: np.ndarray) -> SwapProposal:
    """Swaps a uniformly drawn kept branch with a uniformly drawn pruned one of its own set.

    How many each set keeps never changes. Symmetric, as `uniform_swap` is.

    Args:
      sets: number of each branch's set, from 0 on without gaps, int `[total]`; see `patterns.network_sets`.
    """
    sets = np.asarray(sets)
    sizes = np.bincount(sets)
    set_of_slot = jnp.asarray(np.sort(sets), jnp.int32)
    first, size = (jnp.asarray(values, jnp.int32) for values in (np.cumsum(sizes) - sizes, sizes))

    def init(mask):
        order = jnp.lexsort((~mask, jnp.asarray(sets, jnp.int32))).astype(jnp.int32)
        kept_in_set = jnp.zeros(len(sizes), jnp.int32).at[jnp.asarray(sets)].add(mask.astype(jnp.int32))
        kept_slots = jnp.argsort(~mask[order], stable=True).astype(jnp.int32)
        return WithinState(order, mask.sum(dtype=jnp.int32), kept_slots, kept_in_set)

    def draw(rng_key):
        return jax.random.bits(rng_key, (2,), jnp.uint32)

    def propose(noise, state, mask):
        del mask
        kept_slot = state.kept_slots[below(noise[0], state.num_kept)]
        its_set = set_of_slot[kept_slot]
        num_pruned = size[its_set] - state.kept_in_set[its_set]
        pruned_slot = first[its_set] + state.kept_in_set[its_set] + below(noise[1], num_pruned)
        return swap_of_slots(state, kept_slot, pruned_slot, num_pruned)

    return SwapProposal(init, draw, propose, commit_slots)
