"""Swaps: prune one kept branch and keep one pruned branch, so that `k` never changes.

A `Swaps` is a distribution of proposals: it keeps what it needs to draw one in time that does not depend
on the number of branches, and returns the exact log proposal ratio of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.types import InputError, PyTree

# The integer weights of `saliency_swap` sum to less than this, so that int32 sums of them are exact.
WEIGHT_TOTAL = 2**30
# Share of a saliency draw that is uniform: every branch stays reachable and the log ratio bounded.
UNIFORM_SHARE = 0.1
# Candidates drawn per swap; when all of them are kept already the chain stays where it is.
CANDIDATES = 8
# The same of `informed_swap`, for the branch to prune and for the one to keep.
INFORMED_CANDIDATES = 16
# Shares of the kept and of the pruned branches that come first in its ranking, alike before weights fall.
ALIKE_KEPT, ALIKE_PRUNED = 0.1, 0.003
# Nudges: spread in units of what derivatives suggest, candidates drawn for each, how many times the mean gain it
# takes to be drawn most often, and how seldom, in comparison, others are. Chosen on validation images of MNIST.
NUDGE_SPREAD = 0.6
NUDGE_CANDIDATES = 8
NUDGED_ALIKE = 8.0
LEAST_PASS = 0.05


class Swap(NamedTuple):
    """One proposal. `pruned == grown` stands for staying in place; its log proposal ratio is -inf.

    Attributes:
      pruned: flat index of the kept branch to prune, int32 `[]`.
      grown: flat index of the pruned branch to keep, int32 `[]`.
      slots: where the two stand in the index list, int32 `[2]`; the second is unused by `saliency_swap`.
      nudge: what is added to the weight of the branch, kept and staying, that both name, float32 `[]`; 0 in a
        swap, None where no weight moves.
    """

    pruned: jax.Array
    grown: jax.Array
    slots: jax.Array
    nudge: jax.Array | None = None


class Estimates(NamedTuple):
    """What the derivatives of the energy say of each branch, float32 `[total]` each.

    Attributes:
      effects: the energy with the branch less that without it.
      slopes: derivative of the energy by the branch's weight where it is kept, or once it will be.
      curvatures: second derivative, as the mean square of the samples' first derivatives has it, at least 0.
    """

    effects: jax.Array
    slopes: jax.Array
    curvatures: jax.Array


class Swaps(NamedTuple):
    """A distribution of swaps: pure functions over a state of its own.

    Attributes:
      init: `(mask) -> state`, from a flat mask, bool `[total]`.
      draw: `(rng_key) -> noise`, the random numbers of one swap.
      propose: `(noise, state, mask) -> (swap, log_q_ratio)`.
      commit: `(state, swap, accepted) -> state`.
      refresh: `(state, mask, estimates) -> state`, with `Estimates`; None for proposals that know nothing of the
        energy.
    """

    init: Callable[..., Any]
    draw: Callable[..., Any]
    propose: Callable[..., Any]
    commit: Callable[..., Any]
    refresh: Callable[..., Any] | None = None


class UniformState(NamedTuple):
    """`order` is int32 `[total]`: first the kept branches, then the pruned; `num_kept` is int32 `[]`."""

    order: jax.Array
    num_kept: jax.Array


class SaliencyState(NamedTuple):
    """`order` as in `UniformState`, its pruned part stale; `kept_weight` is int32 `[]`, the kept branches' sum."""

    order: jax.Array
    num_kept: jax.Array
    kept_weight: jax.Array


class WithinState(NamedTuple):
    """Branches set by set, and in each first those that are kept.

    Attributes:
      order: int32 `[total]`.
      num_kept: of all sets together, int32 `[]`.
      kept_slots: where in `order` the kept branches stand, then the others, int32 `[total]`.
      kept_in_set: int32 `[sets]`.
    """

    order: jax.Array
    num_kept: jax.Array
    kept_slots: jax.Array
    kept_in_set: jax.Array


class InformedState(NamedTuple):
    """The weights by which swaps are drawn.

    Attributes:
      order: as in `UniformState`, its pruned part stale, int32 `[total]`.
      num_kept: int32 `[]`.
      grow_upto: cumulative sum of the weights of being kept next, at most `WEIGHT_TOTAL`, int32 `[total]`.
      prune_weights: of being pruned next, 1 to the greatest, int32 `[total]`.
      kept_grow: sum of the former over the kept branches, int32 `[]`.
      kept_prune: sum of the latter over the kept branches, int32 `[]`.
    """

    order: jax.Array
    num_kept: jax.Array
    grow_upto: jax.Array
    prune_weights: jax.Array
    kept_grow: jax.Array
    kept_prune: jax.Array


def uniform_swap() -> Swaps:
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
        kept_slot = _below(noise[0], state.num_kept)
        pruned_slot = state.num_kept + _below(noise[1], num_pruned)
        return _swap_of_slots(state, kept_slot, pruned_slot, num_pruned)

    return Swaps(init, draw, propose, _commit_slots)


def _swap_of_slots(state, kept_slot, pruned_slot, num_pruned):
    pruned_slot = jnp.where((num_pruned > 0) & (state.num_kept > 0), pruned_slot, kept_slot)
    # Read once: XLA would read the list again after the commit, and copy it whole for that, every step.
    branches = jax.lax.optimization_barrier(jnp.stack([state.order[kept_slot], state.order[pruned_slot]]))
    swap = Swap(branches[0], branches[1], jnp.stack([kept_slot, pruned_slot]))
    return swap, jnp.where(swap.pruned == swap.grown, -jnp.inf, jnp.float32(0))


def swap_within(sets: np.ndarray) -> Swaps:
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
        kept_slot = state.kept_slots[_below(noise[0], state.num_kept)]
        its_set = set_of_slot[kept_slot]
        num_pruned = size[its_set] - state.kept_in_set[its_set]
        pruned_slot = first[its_set] + state.kept_in_set[its_set] + _below(noise[1], num_pruned)
        return _swap_of_slots(state, kept_slot, pruned_slot, num_pruned)

    return Swaps(init, draw, propose, _commit_slots)


def saliency_swap(saliency: jax.Array) -> Swaps:
    """Prunes a uniformly drawn kept branch and keeps a pruned one drawn by its saliency.

    The candidates are drawn from a fixed distribution `p` over all branches, which leaves 1 % to none, and the
    first that is pruned is taken, among `m = CANDIDATES`. With `K` the share of `p` on kept branches and on none,
    a branch `b` is then proposed with probability `p_b (1 - K^m) / (1 - K)`, and the log proposal ratio follows
    exactly. `p` is made of integer weights out of a power of two, so that neither rounding nor a remainder enters
    it (`jax.random.randint` favours low numbers by up to a quarter where the range is as wide).

    Args:
      saliency: non-negative float `[total]`, such as `|w| * norm(input)` (Sun et al. 2024, Wanda).
    """
    total = saliency.size
    share = saliency / jnp.maximum(saliency.sum(), jnp.finfo(jnp.float32).tiny)
    uniform = max(int(UNIFORM_SHARE * WEIGHT_TOTAL / total), 1)
    # Rounded down, and 1 % short of the whole, so that the float32 sum of the shares cannot overflow it.
    by_share = jnp.floor(share * (0.99 * (1 - UNIFORM_SHARE) * WEIGHT_TOTAL)).astype(jnp.int32)
    weights = uniform + by_share
    cumulative = jnp.cumsum(weights, dtype=jnp.int32)

    def init(mask):
        kept_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
        kept_weight = jnp.where(mask, weights, 0).sum(dtype=jnp.int32)
        return SaliencyState(kept_first, mask.sum(dtype=jnp.int32), kept_weight)

    def draw(rng_key):
        slot_key, branch_key = jax.random.split(rng_key)
        drawn = (jax.random.bits(branch_key, (CANDIDATES,), jnp.uint32) % WEIGHT_TOTAL).astype(jnp.int32)
        candidates = jnp.searchsorted(cumulative, drawn, side="right").astype(jnp.int32)
        return jax.random.bits(slot_key, (), jnp.uint32), candidates

    def log_tries(kept_weight):
        # What is short of the whole counts as kept.
        return _log_tries(1 - (cumulative[-1] - kept_weight) / WEIGHT_TOTAL, CANDIDATES)

    def propose(noise, state, mask):
        bits, candidates = noise
        slot = _below(bits, state.num_kept)
        pruned = state.order[slot]
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
        order = state.order.at[swap.slots[0]].set(jnp.where(accepted, swap.grown, swap.pruned))
        change = jnp.where(accepted, weights[swap.grown] - weights[swap.pruned], 0)
        return SaliencyState(order, state.num_kept, state.kept_weight + change)

    return Swaps(init, draw, propose, commit)


def informed_swap() -> Swaps:
    """Prunes and keeps branches that are estimated to lower the energy most by it.

    Kept branches are ranked by the energy that pruning them is estimated to save, pruned ones by the energy that
    keeping them is. Those of rank `r` are drawn with a weight of about `1 / (1 + r / c)`, with `c` a share
    `ALIKE_KEPT` of the kept, `ALIKE_PRUNED` of the pruned branches, and at least a share `UNIFORM_SHARE` of the
    mean. Branches without effect, such as those of a dead unit, come last. (In the spirit of Zanella 2020, who
    weighs all neighbours by their energies; ranks need no scale.)

    The estimates come from the derivative of the energy with respect to the mask, and stay as they are until the
    landscape is refreshed. Up to then the log proposal ratio is exact, as it is for `saliency_swap`; from one
    refresh to the next the proposals follow the chain, so that a fixed temperature samples the Boltzmann
    distribution only nearly.

    The branch to prune is the first of `m = INFORMED_CANDIDATES` uniformly drawn kept ones that passes with
    probability `weight / greatest`, the one to keep the first pruned one of `m` drawn by weight.
    """

    def init(mask):
        kept_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
        nothing = jnp.zeros(mask.size, jnp.int32)
        state = InformedState(kept_first, mask.sum(dtype=jnp.int32), nothing, nothing, nothing[0], nothing[0])
        return ranked(state, mask, jnp.zeros(mask.size))

    def levels(total):
        # A power of two, such that the sum of all weights is an int32.
        return 2 ** min((WEIGHT_TOTAL // total).bit_length() - 1, 15)

    def refresh(state, mask, estimates):
        return ranked(state, mask, estimates.effects)

    def ranked(state, mask, effects):
        total, greatest = mask.size, levels(mask.size)
        # A branch that changes nothing is as good as never kept next, and pruned as the harmful ones are.
        effects = jnp.nan_to_num(effects)
        harmful = jnp.sort(jnp.where(mask, -effects, jnp.inf))
        useful = jnp.sort(jnp.where(mask, jnp.inf, effects))
        prune = _by_rank(jnp.searchsorted(harmful, -effects), ALIKE_KEPT * state.num_kept)
        grow = _by_rank(jnp.searchsorted(useful, effects), ALIKE_PRUNED * (total - state.num_kept))
        grow = jnp.where(effects != 0, grow, 0)
        mean = jnp.where(mask, prune, 0).sum() / jnp.maximum(state.num_kept, 1)
        prune = jnp.maximum((jnp.maximum(prune, UNIFORM_SHARE * mean) * greatest).astype(jnp.int32), 1)
        uniform = max(int(UNIFORM_SHARE * WEIGHT_TOTAL / total), 1)
        # Rounded down, and 1 % short of the whole, as in `saliency_swap`.
        share = grow / jnp.maximum(grow.sum(), jnp.finfo(jnp.float32).tiny)
        grow = uniform + jnp.floor(share * (0.99 * (1 - UNIFORM_SHARE) * WEIGHT_TOTAL)).astype(jnp.int32)
        return state._replace(
            grow_upto=jnp.cumsum(grow, dtype=jnp.int32),
            prune_weights=prune,
            kept_grow=jnp.where(mask, grow, 0).sum(dtype=jnp.int32),
            kept_prune=jnp.where(mask, prune, 0).sum(dtype=jnp.int32),
        )

    def draw(rng_key):
        return jax.random.bits(rng_key, (3, INFORMED_CANDIDATES), jnp.uint32)

    def grow_weight(state, branch):
        before = jnp.where(branch > 0, state.grow_upto[branch - 1], 0)
        return state.grow_upto[branch] - before

    def log_tries(state, kept_grow, kept_prune):
        # What is short of the whole counts as kept.
        fails = 1 - (state.grow_upto[-1] - kept_grow) / WEIGHT_TOTAL
        passes = kept_prune / (state.num_kept * jnp.float32(levels(state.order.size)))
        return _log_tries(fails, INFORMED_CANDIDATES) + _log_tries(1 - passes, INFORMED_CANDIDATES)

    def propose(noise, state, mask):
        slots = _below(noise[0], state.num_kept)
        greatest = levels(mask.size)
        # For the reason given in `_swap_of_slots`.
        branches = jax.lax.optimization_barrier(state.order[slots])
        passes = (noise[1] % greatest).astype(jnp.int32) < state.prune_weights[branches]
        slot, pruned = slots[passes.argmax()], branches[passes.argmax()]
        drawn = (noise[2] % WEIGHT_TOTAL).astype(jnp.int32)
        candidates = jnp.searchsorted(state.grow_upto, drawn, side="right").astype(jnp.int32)
        candidates_pruned = (candidates < mask.size) & ~mask[jnp.minimum(candidates, mask.size - 1)]
        found = passes.any() & candidates_pruned.any() & (state.num_kept > 0)
        grown = jnp.where(found, candidates[candidates_pruned.argmax()], pruned)
        grow = grow_weight(state, pruned), grow_weight(state, grown)
        prune = state.prune_weights[pruned], state.prune_weights[grown]
        log_q_ratio = (
            jnp.log(grow[0] / grow[1])
            + jnp.log(prune[1] / prune[0])
            + log_tries(state, state.kept_grow + grow[1] - grow[0], state.kept_prune + prune[1] - prune[0])
            - log_tries(state, state.kept_grow, state.kept_prune)
        )
        return Swap(pruned, grown, jnp.stack([slot, slot])), jnp.where(found, log_q_ratio, -jnp.inf)

    def commit(state, swap, accepted):
        order = state.order.at[swap.slots[0]].set(jnp.where(accepted, swap.grown, swap.pruned))
        grow = grow_weight(state, swap.grown) - grow_weight(state, swap.pruned)
        prune = state.prune_weights[swap.grown] - state.prune_weights[swap.pruned]
        return state._replace(
            order=order,
            kept_grow=state.kept_grow + jnp.where(accepted, grow, 0),
            kept_prune=state.kept_prune + jnp.where(accepted, prune, 0),
        )

    return Swaps(init, draw, propose, commit, refresh)


class NudgeState(NamedTuple):
    """The swaps, and how a branch would be nudged.

    Attributes:
      swaps: state of the swaps.
      mean: of each branch's nudge, less those made since the last refresh, float32 `[total]`.
      spread: its standard deviation, float32 `[total]`.
      passes: probability that a branch drawn is taken, float32 `[total]`.
    """

    swaps: PyTree
    mean: jax.Array
    spread: jax.Array
    passes: jax.Array


def nudge(swaps: Swaps, scale: jax.Array, share: float = 0.5) -> Swaps:
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
      swaps: the proposals that change the mask; its states hold an `order` and `num_kept`.
      scale: of each weight, such as the layer's root mean square, positive, float32 `[total]`.
      share: probability of a nudge, in (0, 1].
    """

    def init(mask):
        nothing = jnp.zeros(mask.size, jnp.float32)
        return NudgeState(swaps.init(mask), nothing, nothing, nothing)

    def draw(rng_key):
        swap_key, choice_key, branch_key, amount_key = jax.random.split(rng_key, 4)
        nudges = jax.random.uniform(choice_key, dtype=jnp.float32) < share
        bits = jax.random.bits(branch_key, (2, NUDGE_CANDIDATES), jnp.uint32)
        return swaps.draw(swap_key), nudges, bits, jax.random.normal(amount_key, dtype=jnp.float32)

    def propose(noise, state, mask):
        noise, nudges, bits, amount = noise
        swap, log_q_ratio = swaps.propose(noise, state.swaps, mask)
        slots = _below(bits[0], state.swaps.num_kept)
        # For the reason given in `_swap_of_slots`.
        branches = jax.lax.optimization_barrier(state.swaps.order[slots])
        # Which branch is taken hangs on the mask alone, which a nudge leaves: nothing of it enters the ratio.
        first = (bits[1] / jnp.float32(2**32) < state.passes[branches]).argmax()
        slot, branch = slots[first], branches[first]
        mean, spread = state.mean[branch], state.spread[branch]
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
        mean = state.mean.at[swap.pruned].add(jnp.where(accepted, -swap.nudge, 0))
        return state._replace(swaps=swaps.commit(state.swaps, swap, accepted), mean=mean)

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
        return NudgeState(swaps_state, mean, spread, jnp.clip(passes, LEAST_PASS, 1))

    return Swaps(init, draw, propose, commit, refresh)


def swap_mask(mask: jax.Array, swap: Swap, accepted: jax.Array | bool = True) -> jax.Array:
    """Returns the flat mask, bool `[total]`, after the swap, or unchanged where it is not accepted."""
    swapped = accepted & (swap.pruned != swap.grown)
    # Both read before either is written, for the same reason as in `uniform_swap`.
    kept = jax.lax.optimization_barrier(jnp.stack([mask[swap.pruned], mask[swap.grown]]))
    return mask.at[swap.pruned].set(kept[0] & ~swapped).at[swap.grown].set(kept[1] | swapped)


def move_fn(swaps: Swaps) -> Callable[[jax.Array, Any], tuple[Any, jax.Array]]:
    """Makes a move for `from_energy` of swaps, on positions `(mask, swaps.init(mask))`.

    The index lists travel in the position, so that a proposal does not rebuild them.

    Args:
      swaps: any but `nudge`.

    Returns:
      `(rng_key, (mask, state)) -> ((mask, state), log_q_ratio)`, the mask bool `[total]`, the ratio float32 `[]`.

    Raises:
      InputError: when annealed, if the swaps change weights.
    """

    def move(rng_key, position):
        mask, state = position
        swap, log_q_ratio = swaps.propose(swaps.draw(rng_key), state, mask)
        if swap.nudge is not None:
            raise InputError("positions (mask, state) hold no weights to change: leave nudge out")
        return (swap_mask(mask, swap), swaps.commit(state, swap, jnp.asarray(True))), log_q_ratio

    return move


def _commit_slots(state, swap, accepted):
    """The two branches of an accepted swap change places in the order."""
    first = jnp.where(accepted, swap.grown, swap.pruned)
    second = jnp.where(accepted, swap.pruned, swap.grown)
    order = state.order.at[swap.slots[0]].set(first).at[swap.slots[1]].set(second)
    return state._replace(order=order)


def _by_rank(ranks, alike):
    return 1 / (1 + ranks / jnp.maximum(alike, 1))


def _log_tries(failing: jax.Array, tries: int) -> jax.Array:
    """Logarithm of `1 + failing + ... + failing**(tries - 1)`."""
    # By Horner: XLA turns a power of kept / sum with a constant sum into kept^7 / sum^7, which overflows.
    total = jnp.float32(1)
    for _ in range(tries - 1):
        total = 1 + failing * total
    return jnp.log(total)


def _below(bits, bound):
    # Modulo favours low slots by 2**-32; which branch stands in a slot is random, and the reverse swap
    # draws the same slots, so detailed balance holds exactly.
    return (bits % jnp.maximum(bound, 1).astype(jnp.uint32)).astype(jnp.int32)
