"""Swaps that draw both branches by their estimated effects on the energy."""

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

# Number of candidates drawn per swap, for the branch to prune and for the branch to keep.
INFORMED_CANDIDATES = 16
# Shares of the kept and of the pruned branches at the top of the ranking whose weights are about equal. Below this
# share the weights fall.
ALIKE_KEPT, ALIKE_PRUNED = 0.1, 0.003


class InformedCache(NamedTuple):
    """The weights by which branches are drawn; a refresh computes them again.

    Every branch has two weights: its keep weight, for a draw as the branch to keep, and its prune weight, for a
    draw as the branch to prune.

    Attributes:
      grow_upto: cumulative sum of the keep weights, at most `WEIGHT_TOTAL`.
      prune_weights: prune weights, from 1 to the greatest weight (see `levels` in `informed_swap`).
      kept_grow: sum of the keep weights of the kept branches.
      kept_prune: sum of the prune weights of the kept branches.
    """

    grow_upto: jax.Array  # int32 [total]
    prune_weights: jax.Array  # int32 [total]
    kept_grow: jax.Array  # int32 []
    kept_prune: jax.Array  # int32 []


class InformedState(NamedTuple):
    """The kept branches and the weights by which branches are drawn.

    Attributes:
      kept: list of the kept branches.
      cache: weights by which branches are drawn.
    """

    kept: KeptList
    cache: InformedCache

    @property
    def num_kept(self) -> jax.Array:
        """Number of kept branches, int32 `[]`."""
        return self.kept.num_kept

    def kept_at(self, slots: jax.Array) -> jax.Array:
        """Returns the flat indices of kept branches, int32 of the shape of `slots`; slots are below `num_kept`."""
        return self.kept.branches[slots]


def informed_swap() -> SwapProposal:
    """Prefers swaps that are estimated to lower the energy most.

    Kept branches are ranked by the estimated decrease of the energy if they are pruned. Pruned branches are ranked
    by the estimated decrease if they are kept. A branch of rank `r` is drawn with a weight of about
    `1 / (1 + r / c)`. Here `c` is a share `ALIKE_KEPT` of the kept branches, or a share `ALIKE_PRUNED` of the
    pruned branches. The weight is at least a share `UNIFORM_SHARE` of the mean weight. Branches without an effect,
    such as the branches of a dead unit, come last when the branch to keep is drawn. (The idea is that of Zanella
    2020, who weighs all neighbours by their energies. Ranks do not need a scale.)

    The branch to prune is drawn from `m = INFORMED_CANDIDATES` kept branches, which are drawn uniformly. A
    candidate passes with probability `weight / greatest weight`, and the first that passes is taken. The branch to
    keep is the first pruned one of `m` candidates, which are drawn by weight.

    The landscape makes the estimates. They do not change until it is refreshed. Between two refreshes the log
    proposal ratio is exact, as it is for `saliency_swap`. A refresh adapts the proposals to the current mask. A
    chain at a fixed temperature therefore samples the Boltzmann distribution only approximately.
    """

    def init(mask):
        kept = kept_list(mask)
        return InformedState(kept, ranked(kept.num_kept, mask, jnp.where(mask, 0.0, 0.0)))

    def levels(total):
        # The greatest prune weight: a power of two, such that the sum of all weights fits into an int32.
        return 2 ** min((WEIGHT_TOTAL // total).bit_length() - 1, 15)

    def refresh(state, mask, estimates):
        return state._replace(cache=ranked(state.num_kept, mask, estimates.effects))

    def ranked(num_kept, mask, effects):
        total, greatest = mask.size, levels(mask.size)
        # A branch without an effect is almost never drawn as the branch to keep. Its prune weight follows from its
        # rank, which is above the ranks of all useful branches.
        effects = jnp.nan_to_num(effects)
        harmful = jnp.sort(jnp.where(mask, -effects, jnp.inf))
        useful = jnp.sort(jnp.where(mask, jnp.inf, effects))
        prune = _by_rank(jnp.searchsorted(harmful, -effects), ALIKE_KEPT * num_kept.astype(jnp.float32))
        grow = _by_rank(jnp.searchsorted(useful, effects), ALIKE_PRUNED * (total - num_kept).astype(jnp.float32))
        grow = jnp.where(effects != 0, grow, 0)
        mean = jnp.where(mask, prune, 0).sum() / jnp.maximum(num_kept, 1).astype(jnp.float32)
        prune = jnp.maximum((jnp.maximum(prune, UNIFORM_SHARE * mean) * greatest).astype(jnp.int32), 1)
        uniform = max(int(UNIFORM_SHARE * WEIGHT_TOTAL / total), 1)
        # Rounded down, and with a sum 1 % below the total, as in `saliency_swap`.
        share = grow / jnp.maximum(grow.sum(), jnp.finfo(jnp.float32).tiny)
        grow = uniform + jnp.floor(share * (0.99 * (1 - UNIFORM_SHARE) * WEIGHT_TOTAL)).astype(jnp.int32)
        return InformedCache(
            grow_upto=jnp.cumsum(grow, dtype=jnp.int32),
            prune_weights=prune,
            kept_grow=jnp.where(mask, grow, 0).sum(dtype=jnp.int32),
            kept_prune=jnp.where(mask, prune, 0).sum(dtype=jnp.int32),
        )

    def draw(rng_key):
        return jax.random.bits(rng_key, (3, INFORMED_CANDIDATES), jnp.uint32)

    def grow_weight(cache, branch):
        before = jnp.where(branch > 0, cache.grow_upto[branch - 1], 0)
        return cache.grow_upto[branch] - before

    def log_tries(state, kept_grow, kept_prune):
        # The probability of no branch counts as that of a kept branch.
        fails = 1 - (state.cache.grow_upto[-1] - kept_grow) / WEIGHT_TOTAL
        greatest = jnp.float32(levels(state.kept.branches.size))
        passes = kept_prune.astype(jnp.float32) / (state.num_kept.astype(jnp.float32) * greatest)
        return log_geometric_sum(fails, INFORMED_CANDIDATES) + log_geometric_sum(1 - passes, INFORMED_CANDIDATES)

    def propose(noise, state, mask):
        cache = state.cache
        slots = below(noise[0], state.num_kept)
        greatest = levels(mask.size)
        # The barrier is here for the reason given in `swap_of_slots`.
        branches = jax.lax.optimization_barrier(state.kept_at(slots))
        passes = (noise[1] % greatest).astype(jnp.int32) < cache.prune_weights[branches]
        slot, pruned = slots[passes.argmax()], branches[passes.argmax()]
        drawn = (noise[2] % WEIGHT_TOTAL).astype(jnp.int32)
        candidates = jnp.searchsorted(cache.grow_upto, drawn, side="right").astype(jnp.int32)
        candidates_pruned = (candidates < mask.size) & ~mask[jnp.minimum(candidates, mask.size - 1)]
        found = passes.any() & candidates_pruned.any() & (state.num_kept > 0)
        grown = jnp.where(found, candidates[candidates_pruned.argmax()], pruned)
        grow = grow_weight(cache, pruned), grow_weight(cache, grown)
        prune = cache.prune_weights[pruned], cache.prune_weights[grown]
        log_q_ratio = (
            jnp.log(grow[0] / grow[1])
            + jnp.log(prune[1] / prune[0])
            + log_tries(state, cache.kept_grow + grow[1] - grow[0], cache.kept_prune + prune[1] - prune[0])
            - log_tries(state, cache.kept_grow, cache.kept_prune)
        )
        return Swap(pruned, grown, jnp.stack([slot, slot])), jnp.where(found, log_q_ratio, -jnp.inf)

    def commit(state, swap, accepted):
        cache = state.cache
        kept = state.kept.replaced(swap.slots[0], jnp.where(accepted, swap.grown, swap.pruned))
        grow = grow_weight(cache, swap.grown) - grow_weight(cache, swap.pruned)
        prune = cache.prune_weights[swap.grown] - cache.prune_weights[swap.pruned]
        cache = cache._replace(
            kept_grow=cache.kept_grow + jnp.where(accepted, grow, 0),
            kept_prune=cache.kept_prune + jnp.where(accepted, prune, 0),
        )
        return InformedState(kept, cache)

    return SwapProposal(init, draw, propose, commit, refresh)


def _by_rank(ranks, alike):
    return 1 / (1 + ranks.astype(jnp.float32) / jnp.maximum(alike, 1))
