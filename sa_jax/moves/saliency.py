"""Swaps that draw the branch to keep by a fixed score, such as `|w| * norm(input)`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.moves.base import (
    UNIFORM_SHARE,
    WEIGHT_TOTAL,
    KeptList,
    Swap,
    SwapProposal,
    below,
    kept_list,
    log_geometric_sum,
)

# Number of candidates drawn per swap. If all of them are kept already, the proposal stays in place.
CANDIDATES = 8


class SaliencyState(NamedTuple):
    """The kept branches and the sum of their weights.

    Attributes:
      kept: list of the kept branches.
      kept_weight: sum of the integer weights of the kept branches.
    """

    kept: KeptList
    kept_weight: jax.Array  # int32 []

    @property
    def num_kept(self) -> jax.Array:
        """Number of kept branches, int32 `[]`."""
        return self.kept.num_kept

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Returns the flat indices of kept branches, int32 of the shape of `slots`; slots are below `num_kept`."""
        return self.kept.branches[slots]


def saliency_swap(saliency: jax.Array) -> SwapProposal:
    """Prunes a uniformly drawn kept branch and keeps a pruned branch drawn by its saliency.

    The branch to keep is the first pruned one of `m = CANDIDATES` candidates. The candidates are drawn from a
    fixed distribution `p` over all branches, in which 1 % of the probability belongs to no branch. Let `K` be the
    probability of the kept branches and of no branch. A pruned branch `b` is then proposed with probability
    `p_b (1 - K^m) / (1 - K)`, and the log proposal ratio follows exactly.

    The probabilities are integer weights divided by a power of two, so that they have neither rounding errors nor
    a modulo bias. (`jax.random.randint` favours low numbers by up to a quarter if the range is as wide.)

    Args:
      saliency: non-negative float `[total]`, such as `|w| * norm(input)` (Sun et al. 2024, Wanda).
    """
    total = saliency.size
    share = saliency / jnp.maximum(saliency.sum(), jnp.finfo(jnp.float32).tiny)
    uniform = max(int(UNIFORM_SHARE * WEIGHT_TOTAL / total), 1)
    # Rounded down, and with a sum 1 % below the total: a rounding error in the float32 sum of the shares then
    # cannot exceed the total.
    by_share = jnp.floor(share * (0.99 * (1 - UNIFORM_SHARE) * WEIGHT_TOTAL)).astype(jnp.int32)
    weights = uniform + by_share
    cumulative = jnp.cumsum(weights, dtype=jnp.int32)

    def init(mask):
        return SaliencyState(kept_list(mask), jnp.where(mask, weights, 0).sum(dtype=jnp.int32))

    def draw(rng_key):
        slot_key, branch_key = jax.random.split(rng_key)
        drawn = (jax.random.bits(branch_key, (CANDIDATES,), jnp.uint32) % WEIGHT_TOTAL).astype(jnp.int32)
        candidates = jnp.searchsorted(cumulative, drawn, side="right").astype(jnp.int32)
        return jax.random.bits(slot_key, (), jnp.uint32), candidates

    def log_tries(kept_weight):
        # The probability of no branch counts as that of a kept branch.
        return log_geometric_sum(1 - (cumulative[-1] - kept_weight) / WEIGHT_TOTAL, CANDIDATES)

    def propose(noise, state, mask):
        bits, candidates = noise
        slot = below(bits, state.num_kept)
        pruned = state.kept_at(slot)
        is_pruned = (candidates < total) & ~mask[jnp.minimum(candidates, total - 1)]
        found = is_pruned.any() & (state.num_kept > 0)
        grown = jnp.where(found, candidates[is_pruned.argmax()], pruned)
        weight_change = weights[grown] - weights[pruned]
        log_q_ratio = (
            jnp.log(weights[pruned] / weights[grown])
            + log_tries(state.kept_weight + weight_change)
            - log_tries(state.kept_weight)
        )
        return Swap(pruned, grown, jnp.stack([slot, slot])), jnp.where(found, log_q_ratio, -jnp.inf)

    def commit(state, swap, accepted):
        kept = state.kept.replaced(swap.slots[0], jnp.where(accepted, swap.grown, swap.pruned))
        change = jnp.where(accepted, weights[swap.grown] - weights[swap.pruned], 0)
        return SaliencyState(kept, state.kept_weight + change)

    return SwapProposal(init, draw, propose, commit)
