"""Swaps mixed with small changes of a kept branch's weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.moves.base import Swap, SwapProposal, below
from sa_jax.types import PyTree

# Nudges: spread in units of what derivatives suggest, candidates drawn for each, how many times the mean gain it
# takes to be drawn most often, and how seldom, in comparison, others are. Chosen on validation images of MNIST.
NUDGE_SPREAD = 0.6
NUDGE_CANDIDATES = 8
NUDGED_ALIKE = 8.0
LEAST_PASS = 0.05


class NudgeCache(NamedTuple):
    """How a branch would be nudged, which a refresh makes again.

    Attributes:
      mean: of each branch's nudge, less those made since the last refresh, float32 `[total]`.
      spread: its standard deviation, float32 `[total]`.
      passes: probability that a branch drawn is taken, float32 `[total]`.
    """

    mean: jax.Array  # float32 [total]
    spread: jax.Array  # float32 [total]
    passes: jax.Array  # float32 [total]


class NudgeState(NamedTuple):
    """The swaps, and how a branch would be nudged.

    Attributes:
      swaps: state of the swaps.
      cache: what a refresh makes again.
    """

    swaps: PyTree
    cache: NudgeCache


def nudge(swaps: SwapProposal, scale: jax.Array, share: float = 0.5) -> SwapProposal:
    """Swaps, and now and then a small change of a kept branch's weight instead.

    By the slope `g` and the curvature `h` of the energy along each weight, at the last refresh of the landscape, a
    change of `-g / h` gains most, about `g**2 / 2h`. A new weight is drawn from a normal distribution around the
    one that this change led to, of standard deviation `NUDGE_SPREAD * sqrt((g / h)**2 + G / h)`, `G` the mean of
    `g**2 / h` over the kept branches: near the Gibbs sampler of a chain that has settled, where `G` is about the
    temperature. The branch is the first of `NUDGE_CANDIDATES` uniformly drawn kept ones that passes, with a
    probability in proportion to `g**2 / h` up to `NUDGED_ALIKE * G`. The change aimed at and the standard
    deviation are at most `scale`, and the gain is less accordingly; a weight without effect stays as it is.

    The log proposal ratio is exact between refreshes, and across them the proposals follow the chain, as with
    `informed_swap`.

    Args:
      swaps: the proposals that change the mask; its states have `num_kept` and `kept_at`.
      scale: of each weight, such as the layer's root mean square, positive, float32 `[total]`.
      share: probability of a nudge, in (0, 1].
    """

    def init(mask):
        nothing = jnp.zeros(mask.size, jnp.float32)
        return NudgeState(swaps.init(mask), NudgeCache(nothing, nothing, nothing))

    def draw(rng_key):
        swap_key, choice_key, branch_key, amount_key = jax.random.split(rng_key, 4)
        nudges = jax.random.uniform(choice_key, dtype=jnp.float32) < share
        bits = jax.random.bits(branch_key, (2, NUDGE_CANDIDATES), jnp.uint32)
        return swaps.draw(swap_key), nudges, bits, jax.random.normal(amount_key, dtype=jnp.float32)

    def propose(noise, state, mask):
        noise, nudges, bits, amount = noise
        swap, log_q_ratio = swaps.propose(noise, state.swaps, mask)
        slots = below(bits[0], state.swaps.num_kept)
        # For the reason given in `swap_of_slots`.
        branches = jax.lax.optimization_barrier(state.swaps.kept_at(slots))
        # Which branch is taken hangs on the mask alone, which a nudge leaves: nothing of it enters the ratio.
        first = (bits[1] / jnp.float32(2**32) < state.cache.passes[branches]).argmax()
        slot, branch = slots[first], branches[first]
        mean, spread = state.cache.mean[branch], state.cache.spread[branch]
        nudges &= state.swaps.num_kept > 0
        change = mean + spread * amount
        swap = Swap(
            jnp.where(nudges, branch, swap.pruned),
            jnp.where(nudges, branch, swap.grown),
            jnp.where(nudges, slot, swap.slots),
            jnp.where(nudges, change, 0),
        )
        # The reverse one is drawn around the mean that is left after this one, see `commit`.
        nudge_ratio = (amount**2 - (mean / spread) ** 2) / 2
        nudge_ratio = jnp.where(change == 0, -jnp.inf, nudge_ratio)
        return swap, jnp.where(nudges, nudge_ratio, log_q_ratio)

    def commit(state, swap, accepted):
        mean = state.cache.mean.at[swap.pruned].add(jnp.where(accepted, -swap.nudge, 0))
        return NudgeState(swaps.commit(state.swaps, swap, accepted), state.cache._replace(mean=mean))

    def refresh(state, mask, estimates):
        swaps_state = state.swaps if swaps.refresh is None else swaps.refresh(state.swaps, mask, estimates)
        slopes, curvatures = map(jnp.nan_to_num, estimates[1:])
        curved = curvatures > 0
        curvatures = jnp.where(curved, curvatures, 1)
        mean = jnp.where(curved, jnp.clip(-slopes / curvatures, -scale, scale), 0)
        gains = -2 * slopes * mean - curvatures * mean**2
        mean_gain = jnp.where(mask, gains, 0).sum() / jnp.maximum(state.swaps.num_kept, 1)
        spread = jnp.minimum(NUDGE_SPREAD * jnp.sqrt(mean**2 + mean_gain / curvatures), scale)
        spread = jnp.where(curved, spread, 0)
        passes = gains / jnp.maximum(NUDGED_ALIKE * mean_gain, jnp.finfo(jnp.float32).tiny)
        return NudgeState(swaps_state, NudgeCache(mean, spread, jnp.clip(passes, LEAST_PASS, 1)))

    return SwapProposal(init, draw, propose, commit, refresh)
