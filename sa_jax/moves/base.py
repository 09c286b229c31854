"""Swaps: a swap prunes one kept branch and keeps one pruned branch, so the number of kept branches never changes.

A `SwapProposal` is a distribution of swaps. Its state lets it draw a swap in time that does not depend on the
number of branches. It returns each swap with its exact log proposal ratio.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sa_jax.types import DrawFn, InputError, Noise, NoiseIn, State, StateIn, StateOut

# The integer weights of `saliency_swap` and of `informed_swap` sum to less than this, so that their int32 sums are
# exact.
WEIGHT_TOTAL = 2**30
# Share of a draw by weight that is uniform. Every branch can therefore be drawn, and the log ratio is bounded.
UNIFORM_SHARE = 0.1


class Swap(NamedTuple):
    """One proposal: a swap, a nudge of one weight, or a proposal to stay in place.

    In a nudge and in a proposal to stay, `pruned == grown`. A proposal to stay has a log proposal ratio of -inf.

    Attributes:
      pruned: flat index of the kept branch to prune.
      grown: flat index of the pruned branch to keep.
      slots: positions of the two branches in the index list. `saliency_swap` and `informed_swap` use only the
        first one.
      nudge: amount to add to the weight of a kept branch, whose index both `pruned` and `grown` hold. It is 0 in a
        swap, and None if the proposals never change weights.
    """

    pruned: jax.Array  # int32 []
    grown: jax.Array  # int32 []
    slots: jax.Array  # int32 [2]
    nudge: jax.Array | None = None  # float32 []

    @property
    def changes_mask(self) -> jax.Array:
        """Whether the two branches differ, bool `[]`. They do not if this is a nudge or stays in place."""
        return self.pruned != self.grown


class KeptList(NamedTuple):
    """A list of the kept branches, from which one is drawn in time that does not depend on their number.

    Attributes:
      branches: flat indices. The first `num_kept` entries are the kept branches; the other entries are never read.
      num_kept: number of kept branches.
    """

    branches: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []

    def replaced(self, slot: jax.Array, branch: jax.Array) -> "KeptList":
        """Returns the list with the entry at `slot`, int32 `[]`, replaced by `branch`, int32 `[]`."""
        return self._replace(branches=self.branches.at[slot].set(branch))

    def packed(self) -> "KeptList":
        """Returns the list with zeros in the entries that are never read; leading axes are allowed."""
        slots = jnp.arange(self.branches.shape[-1])
        return self._replace(branches=jnp.where(slots < self.num_kept[..., None], self.branches, 0))


class Estimates(NamedTuple):
    """Estimates for each branch, from forward passes or from derivatives of the energy.

    Attributes:
      effects: the energy with the branch minus the energy without it.
      slopes: derivative of the energy with respect to the branch's weight. For a pruned branch it is the
        derivative at the weight that the branch has once it is kept.
      curvatures: second derivative with respect to the branch's weight, estimated by the mean square of the
        samples' first derivatives, so at least 0.
    """

    effects: jax.Array  # float32 [total]
    slopes: jax.Array  # float32 [total]
    curvatures: jax.Array  # float32 [total]


class InitSwapsFn(Protocol[StateOut]):
    """Makes the state of the proposals from a flat mask, bool `[total]`: `(mask) -> state`."""

    def __call__(self, mask: jax.Array, /) -> StateOut: ...


class ProposeSwapFn(Protocol[NoiseIn, StateIn]):
    """Proposes a swap: `(noise, state, mask) -> (swap, log_q_ratio)`."""

    def __call__(self, noise: NoiseIn, state: StateIn, mask: jax.Array, /) -> tuple[Swap, jax.Array]: ...


class CommitSwapFn(Protocol[State]):
    """Updates the state after a swap that was accepted or not: `(state, swap, accepted) -> state`."""

    def __call__(self, state: State, swap: Swap, accepted: jax.Array, /) -> State: ...


class RefreshSwapsFn(Protocol[State]):
    """Updates the state with new estimates: `(state, mask, estimates) -> state`."""

    def __call__(self, state: State, mask: jax.Array, estimates: Estimates, /) -> State: ...


class SwapProposal(NamedTuple, Generic[State, Noise]):
    """A distribution of swaps, as pure functions over a state.

    Attributes:
      init: `(mask) -> state`, from a flat mask, bool `[total]`.
      draw: `(rng_key) -> noise`, all random numbers of one swap.
      propose: `(noise, state, mask) -> (swap, log_q_ratio)`. The ratio is -inf if the proposal stays in place.
      commit: `(state, swap, accepted) -> state`.
      refresh: `(state, mask, estimates) -> state`, with new `Estimates`. None if the proposals do not use
        estimates of the energy.
    """

    init: InitSwapsFn[State]
    draw: DrawFn[Noise]
    propose: ProposeSwapFn[Noise, State]
    commit: CommitSwapFn[State]
    refresh: RefreshSwapsFn[State] | None = None


def swap_mask(mask: jax.Array, swap: Swap, accepted: jax.Array | bool = True) -> jax.Array:
    """Returns the flat mask, bool `[total]`, after the swap; it is unchanged if the swap is not accepted."""
    swapped = accepted & swap.changes_mask
    # Both entries are read before either is written, for the reason given in `swap_of_slots`.
    kept = jax.lax.optimization_barrier(jnp.stack([mask[swap.pruned], mask[swap.grown]]))
    return mask.at[swap.pruned].set(kept[0] & ~swapped).at[swap.grown].set(kept[1] | swapped)


def move_fn(swaps: SwapProposal) -> Callable[[jax.Array, Any], tuple[Any, jax.Array]]:
    """Makes a move for `from_energy` from swaps; positions are `(mask, swaps.init(mask))`.

    The position holds the index lists, so that a proposal does not build them again.

    Args:
      swaps: any proposals except `nudge`.

    Returns:
      `(rng_key, (mask, state)) -> ((mask, state), log_q_ratio)`, with the mask bool `[total]` and the ratio
      float32 `[]`.

    Raises:
      InputError: if the swaps change weights; raised when the move is first called.
    """

    def move(rng_key, position):
        mask, state = position
        swap, log_q_ratio = swaps.propose(swaps.draw(rng_key), state, mask)
        if swap.nudge is not None:
            raise InputError("positions (mask, state) hold no weights to change: use the swaps without nudge")
        return (swap_mask(mask, swap), swaps.commit(state, swap, jnp.asarray(True))), log_q_ratio

    return move


def kept_list(mask: jax.Array) -> KeptList:
    """Returns the list of the kept branches of a flat mask, bool `[total]`."""
    return KeptList(jnp.argsort(~mask, stable=True).astype(jnp.int32), mask.sum(dtype=jnp.int32))


def swap_of_slots(
    state: Any, kept_slot: jax.Array, pruned_slot: jax.Array, num_pruned: jax.Array
) -> tuple[Swap, jax.Array]:
    """Returns the swap of the branches at two slots of `state.order`, and its log proposal ratio.

    The slots and `num_pruned` are int32 `[]`. If no branch is kept or `num_pruned` is 0, the proposal stays in
    place.
    """
    pruned_slot = jnp.where((num_pruned > 0) & (state.num_kept > 0), pruned_slot, kept_slot)
    # The barrier makes XLA read the list once. Without it, XLA would read the list again after the commit, and
    # for this it would copy the whole list in every step.
    branches = jax.lax.optimization_barrier(jnp.stack([state.order[kept_slot], state.order[pruned_slot]]))
    swap = Swap(branches[0], branches[1], jnp.stack([kept_slot, pruned_slot]))
    return swap, jnp.where(swap.changes_mask, jnp.float32(0), -jnp.inf)


def commit_slots(state, swap, accepted):
    """Returns the state after the swap: if accepted, its two branches change places in `state.order`."""
    first = jnp.where(accepted, swap.grown, swap.pruned)
    second = jnp.where(accepted, swap.pruned, swap.grown)
    order = state.order.at[swap.slots[0]].set(first).at[swap.slots[1]].set(second)
    return state._replace(order=order)


def log_geometric_sum(failing: jax.Array, tries: int) -> jax.Array:
    """Returns the logarithm of `1 + failing + ... + failing**(tries - 1)`, float32 `[]`."""
    # Horner's scheme, because XLA turns a power of kept / sum with a constant sum into kept^7 / sum^7, which
    # overflows.
    total = jnp.float32(1)
    for _ in range(tries - 1):
        total = 1 + failing * total
    return jnp.log(total)


def below(bits: jax.Array, bound: jax.Array) -> jax.Array:
    """Returns whole numbers from 0 to `bound - 1`, int32, from random bits, uint32 of any shape."""
    # The modulo favours low slots by 2**-32. The branch at a slot is random, and the reverse swap draws the same
    # slots, so detailed balance holds exactly.
    return (bits % jnp.maximum(bound, 1).astype(jnp.uint32)).astype(jnp.int32)
