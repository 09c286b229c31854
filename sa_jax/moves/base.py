"""Swaps: prune one kept branch and keep one pruned branch, so that `k` never changes.

A `SwapProposal` is a distribution of proposals: it keeps what it needs to draw one in time that does not depend
on the number of branches, and returns the exact log proposal ratio of each.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sa_jax.types import DrawFn, InputError, Noise, NoiseIn, State, StateIn, StateOut

# The integer weights of `saliency_swap` sum to less than this, so that int32 sums of them are exact.
WEIGHT_TOTAL = 2**30
# Share of a saliency draw that is uniform: every branch stays reachable and the log ratio bounded.
UNIFORM_SHARE = 0.1


class Swap(NamedTuple):
    """One proposal. `pruned == grown` stands for staying in place; its log proposal ratio is -inf.

    Attributes:
      pruned: flat index of the kept branch to prune, int32 `[]`.
      grown: flat index of the pruned branch to keep, int32 `[]`.
      slots: where the two stand in the index list, int32 `[2]`; the second is unused by `saliency_swap`.
      nudge: what is added to the weight of the branch, kept and staying, that both name, float32 `[]`; 0 in a
        swap, None where no weight moves.
    """

    pruned: jax.Array  # int32 []
    grown: jax.Array  # int32 []
    slots: jax.Array  # int32 [2]
    nudge: jax.Array | None = None  # float32 []

    @property
    def changes_mask(self) -> jax.Array:
        """Whether the two branches differ, bool `[]`: whether this is more than a nudge or staying in place."""
        return self.pruned != self.grown


class KeptList(NamedTuple):
    """The kept branches, so that one is drawn in time that does not depend on their number.

    Attributes:
      branches: flat indices. The first `num_kept` are those of the kept branches; the others are never read.
      num_kept: number of kept branches.
    """

    branches: jax.Array  # int32 [total]
    num_kept: jax.Array  # int32 []

    def replaced(self, slot: jax.Array, branch: jax.Array) -> "KeptList":
        """Returns the list with another branch, int32 `[]`, in a slot, int32 `[]`."""
        return self._replace(branches=self.branches.at[slot].set(branch))

    def packed(self) -> "KeptList":
        """Returns the list with zeros in place of the entries that are never read; leading axes are allowed."""
        slots = jnp.arange(self.branches.shape[-1])
        return self._replace(branches=jnp.where(slots < self.num_kept[..., None], self.branches, 0))


class Estimates(NamedTuple):
    """What the derivatives of the energy say of each branch, float32 `[total]` each.

    Attributes:
      effects: the energy with the branch less that without it.
      slopes: derivative of the energy by the branch's weight where it is kept, or once it will be.
      curvatures: second derivative, as the mean square of the samples' first derivatives has it, at least 0.
    """

    effects: jax.Array  # float32 [total]
    slopes: jax.Array  # float32 [total]
    curvatures: jax.Array  # float32 [total]


class InitSwapsFn(Protocol[StateOut]):
    """Makes the state of the proposals from a flat mask, bool `[total]`."""

    def __call__(self, mask: jax.Array, /) -> StateOut: ...


class ProposeSwapFn(Protocol[NoiseIn, StateIn]):
    """Proposes a swap: `(noise, state, mask) -> (swap, log_q_ratio)`."""

    def __call__(self, noise: NoiseIn, state: StateIn, mask: jax.Array, /) -> tuple[Swap, jax.Array]: ...


class CommitSwapFn(Protocol[State]):
    """Updates the state after a swap that was accepted or not: `(state, swap, accepted) -> state`."""

    def __call__(self, state: State, swap: Swap, accepted: jax.Array, /) -> State: ...


class RefreshSwapsFn(Protocol[State]):
    """Takes new estimates: `(state, mask, estimates) -> state`."""

    def __call__(self, state: State, mask: jax.Array, estimates: Estimates, /) -> State: ...


class SwapProposal(NamedTuple, Generic[State, Noise]):
    """A distribution of swaps: pure functions over a state of its own.

    Attributes:
      init: `(mask) -> state`, from a flat mask, bool `[total]`.
      draw: `(rng_key) -> noise`, the random numbers of one swap.
      propose: `(noise, state, mask) -> (swap, log_q_ratio)`.
      commit: `(state, swap, accepted) -> state`.
      refresh: `(state, mask, estimates) -> state`, with `Estimates`; None for proposals that know nothing of the
        energy.
    """

    init: InitSwapsFn[State]
    draw: DrawFn[Noise]
    propose: ProposeSwapFn[Noise, State]
    commit: CommitSwapFn[State]
    refresh: RefreshSwapsFn[State] | None = None


def swap_mask(mask: jax.Array, swap: Swap, accepted: jax.Array | bool = True) -> jax.Array:
    """Returns the flat mask, bool `[total]`, after the swap, or unchanged where it is not accepted."""
    swapped = accepted & swap.changes_mask
    # Both read before either is written, for the same reason as in `uniform_swap`.
    kept = jax.lax.optimization_barrier(jnp.stack([mask[swap.pruned], mask[swap.grown]]))
    return mask.at[swap.pruned].set(kept[0] & ~swapped).at[swap.grown].set(kept[1] | swapped)


def move_fn(swaps: SwapProposal) -> Callable[[jax.Array, Any], tuple[Any, jax.Array]]:
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


def kept_list(mask: jax.Array) -> KeptList:
    """The list of the kept branches of a flat mask, bool `[total]`."""
    return KeptList(jnp.argsort(~mask, stable=True).astype(jnp.int32), mask.sum(dtype=jnp.int32))


def swap_of_slots(
    state: Any, kept_slot: jax.Array, pruned_slot: jax.Array, num_pruned: jax.Array
) -> tuple[Swap, jax.Array]:
    """Returns the swap of the branches in two slots of `state.order`, int32 `[]` each, and its log ratio.

    It stays in place where nothing is kept or `num_pruned`, int32 `[]`, is 0.
    """
    pruned_slot = jnp.where((num_pruned > 0) & (state.num_kept > 0), pruned_slot, kept_slot)
    # Read once: XLA would read the list again after the commit, and copy it whole for that, every step.
    branches = jax.lax.optimization_barrier(jnp.stack([state.order[kept_slot], state.order[pruned_slot]]))
    swap = Swap(branches[0], branches[1], jnp.stack([kept_slot, pruned_slot]))
    return swap, jnp.where(swap.changes_mask, jnp.float32(0), -jnp.inf)


def commit_slots(state, swap, accepted):
    """The two branches of an accepted swap change places in the order."""
    first = jnp.where(accepted, swap.grown, swap.pruned)
    second = jnp.where(accepted, swap.pruned, swap.grown)
    order = state.order.at[swap.slots[0]].set(first).at[swap.slots[1]].set(second)
    return state._replace(order=order)


def log_geometric_sum(failing: jax.Array, tries: int) -> jax.Array:
    """Returns the logarithm of `1 + failing + ... + failing**(tries - 1)`, float32 `[]`."""
    # By Horner: XLA turns a power of kept / sum with a constant sum into kept^7 / sum^7, which overflows.
    total = jnp.float32(1)
    for _ in range(tries - 1):
        total = 1 + failing * total
    return jnp.log(total)


def below(bits: jax.Array, bound: jax.Array) -> jax.Array:
    """Returns whole numbers from 0 to below `bound`, int32 `[]`, from random bits, uint32 of any shape."""
    # Modulo favours low slots by 2**-32; which branch stands in a slot is random, and the reverse swap
    # draws the same slots, so detailed balance holds exactly.
    return (bits % jnp.maximum(bound, 1).astype(jnp.uint32)).astype(jnp.int32)
