"""Swaps drawn uniformly, from the whole network or within sets of branches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.moves.base import SwapProposal, below, commit_slots, swap_of_slots


class UniformState(NamedTuple):
    """A list of all branches, with the kept ones first.

    Attributes:
      order: flat indices of the kept branches, then of the pruned branches.
      num_kept: number of kept branches.
    """

    order: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Returns the flat indices of kept branches, int32 of the shape of `slots`; slots are below `num_kept`."""
        return self.order[slots]


class WithinState(NamedTuple):
    """A list of all branches, set by set, with the kept branches of each set first.

    Attributes:
      order: flat indices, in this order.
      num_kept: number of kept branches of all sets.
      kept_slots: positions in `order` of the kept branches, then of the pruned branches.
      kept_in_set: number of kept branches of each set.
    """

    order: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []
    kept_slots: jax.Array  # int32 [total]
    kept_in_set: jax.Array  # int32 [sets]

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Returns the flat indices of kept branches, int32 of the shape of `slots`; slots are below `num_kept`."""
        return self.order[self.kept_slots[slots]]


def uniform_swap() -> SwapProposal:
    """Swaps a uniformly drawn kept branch with a uniformly drawn pruned branch, over all layers.

    The move is symmetric: the reverse swap uses the same two slots of the index list. If no branch is pruned or no
    branch is kept, the proposal stays in place.
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
    """Swaps a uniformly drawn kept branch with a uniformly drawn pruned branch of the same set.

    The number of kept branches of each set never changes. The move is symmetric, like `uniform_swap`.

    Args:
      sets: index of each branch's set, int `[total]`. Indices start at 0 and have no gaps. See
        `sa_jax.networks.patterns.network_sets`.
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
