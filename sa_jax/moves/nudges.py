"""Swaps mixed with nudges: small changes of a kept branch's weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.moves.base import Swap, SwapProposal, below
from sa_jax.types import InputError, PyTree

# These four values were chosen on validation images of MNIST.
# Standard deviation of a new weight, relative to the one that the estimates suggest.
NUDGE_SPREAD = 0.6
# Number of candidates drawn per nudge.
NUDGE_CANDIDATES = 8
# A candidate passes with probability 1 if its gain is at least so many times the mean gain.
NUDGED_ALIKE = 8.0
# Least probability that a candidate passes.
LEAST_PASS = 0.05


class NudgeCache(NamedTuple):
    """The distribution of each branch's nudges; a refresh computes it again.

    Attributes:
      mean: mean of each branch's next nudge. Nudges made since the last refresh are subtracted from it.
      spread: standard deviation of each branch's nudge.
      passes: probability that a branch passes as a candidate.
    """

    mean: jax.Array  # float32 [total]
    spread: jax.Array  # float32 [total]
    passes: jax.Array  # float32 [total]


class NudgeState(NamedTuple):
    """The state of the swaps and the distribution of the nudges.

    Attributes:
      swaps: state of the swaps.
      cache: distribution of each branch's nudges.
    """

    swaps: PyTree
    cache: NudgeCache


def nudge(swaps: SwapProposal, scale: jax.Array, share: float = 0.5) -> SwapProposal:
    """Mixes swaps with nudges; a nudge is a small change of a kept branch's weight.

    Let `g` be the slope and `h` the curvature of the energy with respect to a weight, both at the last refresh of
    the landscape. A change of `-g / h` then lowers the energy most, by about `g**2 / 2h`. A nudge draws the new
    weight from a normal distribution around the weight that this change leads to. Its standard deviation is
    `NUDGE_SPREAD * sqrt((g / h)**2 + G / h)`, with `G` the mean of `g**2 / h` over the kept branches. For a chain
    in equilibrium `G` is about the temperature, so that a nudge is close to a step of the Gibbs sampler.

    The branch is drawn from `NUDGE_CANDIDATES` kept branches, which are drawn uniformly. A candidate passes with a
    probability in proportion to `g**2 / h` up to `NUDGED_ALIKE * G`, and the first that passes is taken. If none
    passes, it is the first candidate.

    The mean change and the standard deviation are at most `scale`. If `scale` limits the mean change, the smaller
    gain of this change replaces `g**2 / h`. A weight without an effect on the energy does not change.

    The log proposal ratio is exact between two refreshes. A refresh adapts the proposals to the current state, as
    with `informed_swap`.

    Args:
      swaps: the proposals that change the mask. Their states have `num_kept` and `kept_at`.
      scale: scale of each weight, positive, float32 `[total]`, such as the root mean square of its layer.
      share: probability of a nudge, in (0, 1].

    Raises:
      InputError: when annealed, if the states of the swaps lack `num_kept` or `kept_at`.
    """

    def init(mask):
        state = swaps.init(mask)
        if not hasattr(state, "kept_at"):
            raise InputError(
                "nudge needs swaps whose states have num_kept and kept_at, such as those of uniform_swap"
            )
        nothing = jnp.zeros(mask.size, jnp.float32)
        return NudgeState(state, NudgeCache(nothing, nothing, nothing))

    def draw(rng_key):
        swap_key, choice_key, branch_key, amount_key = jax.random.split(rng_key, 4)
        nudges = jax.random.uniform(choice_key, dtype=jnp.float32) < share
        bits = jax.random.bits(branch_key, (2, NUDGE_CANDIDATES), jnp.uint32)
        return swaps.draw(swap_key), nudges, bits, jax.random.normal(amount_key, dtype=jnp.float32)

    def propose(noise, state, mask):
        noise, nudges, bits, amount = noise
        swap, log_q_ratio = swaps.propose(noise, state.swaps, mask)
        slots = below(bits[0], state.swaps.num_kept)
        # The barrier is here for the reason given in `swap_of_slots`.
        branches = jax.lax.optimization_barrier(state.swaps.kept_at(slots))
        # The choice of the branch depends only on the mask. A nudge does not change the mask, so the choice does
        # not enter the ratio.
        first = (bits[1].astype(jnp.float32) / jnp.float32(2**32) < state.cache.passes[branches]).argmax()
        branch = branches[first]
        mean, spread = state.cache.mean[branch], state.cache.spread[branch]
        nudges &= state.swaps.num_kept > 0
        change = mean + spread * amount
        swap = Swap(
            jnp.where(nudges, branch, swap.pruned),
            jnp.where(nudges, branch, swap.grown),
            # A nudge does not change the list of branches: JAX does not write at an index out of range.
            jnp.where(nudges, mask.size, swap.slots),
            jnp.where(nudges, change, 0),
        )
        # The reverse nudge is drawn around the mean that remains after this nudge; see `commit`.
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
        num_kept = jnp.maximum(state.swaps.num_kept, 1).astype(jnp.float32)
        mean_gain = jnp.where(mask, gains, 0).sum() / num_kept
        spread = jnp.minimum(NUDGE_SPREAD * jnp.sqrt(mean**2 + mean_gain / curvatures), scale)
        spread = jnp.where(curved, spread, 0)
        passes = gains / jnp.maximum(NUDGED_ALIKE * mean_gain, jnp.finfo(jnp.float32).tiny)
        return NudgeState(swaps_state, NudgeCache(mean, spread, jnp.clip(passes, LEAST_PASS, 1)))

    return SwapProposal(init, draw, propose, commit, refresh)
