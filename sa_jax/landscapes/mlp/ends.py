"""Where the two branches of a swap lie, what they change at their ends, and which units may change after them."""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.landscapes.mlp.layout import Layout, mask_of, weight_of
from sa_jax.landscapes.mlp.loops import CHUNKS, chunks, two_rows
from sa_jax.landscapes.mlp.state import Changes, Ends, MlpState
from sa_jax.moves.base import Swap
from sa_jax.types import InputError, PyTree


def ends(layout: Layout, swap: Swap, layer: int) -> Ends:
    """The two branches of a swap seen from one layer.

    Raises:
      InputError: the swap changes a weight, and the layout has fixed weights.
    """
    branches = jnp.stack([swap.pruned, swap.grown])
    if swap.nudge is not None and not layout.moves_weights:
        raise InputError("proposals that change weights need masked_mlp(..., weights_move=True)")
    swapped = swap.changes_mask
    moved = swapped if swap.nudge is None else jnp.stack([swapped | (swap.nudge != 0), swapped])
    here = (branches >= layout.starts[layer]) & (branches < layout.starts[layer + 1]) & moved
    local = jnp.where(here, branches - layout.starts[layer], 0)
    width = layout.shapes[layer][1]
    return Ends(here, local // width, local % width)


def places(layout: Layout, swap: Swap, layer: int) -> jax.Array:
    """1 where a branch of the swap ends, float32 `[2, units]`."""
    end = ends(layout, swap, layer)
    width = layout.shapes[layer][1]
    return (end.here[:, None] & (jnp.arange(width) == end.unit_out[:, None])).astype(jnp.float32)


def kept_weights(layout: Layout, position: PyTree, swap: Swap | None, layer: int, local: jax.Array) -> jax.Array:
    """Weights of branches, 0 where pruned; after the swap where one is given, which is then still proposed.

    Args:
      layout: what stays the same.
      position: before the swap, or after it where none is given.
      swap: a proposal, or None.
      layer: in which the branches lie.
      local: their numbers in the layer, int32 of any shape.
    """
    branches = layout.starts[layer] + local
    kept = mask_of(layout, position)[branches]
    if swap is not None:
        swapped = swap.changes_mask
        kept = (kept & ~(swapped & (branches == swap.pruned))) | (swapped & (branches == swap.grown))
    value = weight_of(layout, position, layer, local)
    if swap is not None and swap.nudge is not None:
        value = value + jnp.where(branches == swap.pruned, swap.nudge, 0)
    return jnp.where(kept, value, 0)


def fan_out(layout: Layout, position: PyTree, swap: Swap, layer: int, units: jax.Array) -> jax.Array:
    """Weights of the branches that leave each of the units, int32 `[units]`: float32 `[units, outputs]`."""
    width = layout.shapes[layer][1]
    return kept_weights(layout, position, swap, layer, units[:, None] * width + jnp.arange(width))


def first_changes(layout: Layout, state: MlpState, swap: Swap, inputs: jax.Array) -> Changes:
    """Returns what the two branches change at their ends, and in the first layer's activations.

    Args:
      layout: what stays the same.
      state: before the swap.
      swap: the proposal.
      inputs: float32 `[features, samples]`.
    """
    act, head = layout.act, layout.head
    at_ends = jnp.stack(
        [_added(layout, state, swap, inputs, *branch) for branch in ((swap.pruned, -1), (swap.grown, 1))]
    )
    end = ends(layout, swap, 0)
    # When both ends lie in one unit its whole change counts once, as the first.
    one_unit = end.here.all() & (end.unit_out[0] == end.unit_out[1])
    counted = end.here & ~(one_unit & jnp.array([False, True]))
    whole = jnp.where(counted[:, None], at_ends, 0).at[0].add(jnp.where(one_unit, at_ends[1], 0))
    old = two_rows(state.cache.outputs[0], end.unit_out)
    leaving = jnp.zeros((2, 0))
    if head > 0:
        leaving = jnp.where(counted[:, None], fan_out(layout, state.position, swap, 1, end.unit_out), 0)
    changes = Changes(at_ends, act(old + whole) - act(old), leaving)
    # Once for all that follows: XLA would compute them again in every loop, and keep the old rows for it.
    return jax.lax.optimization_barrier(changes)


def _added(layout: Layout, state: MlpState, swap: Swap, inputs: jax.Array, branch: jax.Array, sign: int):
    """Change of the branch's weight times activation, float32 `[samples]`, whichever its layer."""
    starts, shapes = layout.starts, layout.shapes

    def of_layer(layer):
        local = branch - starts[layer]
        entering, unit = [inputs, *state.cache.outputs][layer], local // shapes[layer][1]
        row = jax.lax.dynamic_index_in_dim(entering, unit, keepdims=False)
        swapped = swap.changes_mask
        change = sign * jnp.where(swapped, weight_of(layout, state.position, layer, local), 0)
        if swap.nudge is not None and sign < 0:
            change = jnp.where(swap.nudge != 0, swap.nudge, change)
        return change * (layout.act(row) if layer else row)

    layer = (branch >= jnp.array(starts[1:-1], jnp.int32)).sum(dtype=jnp.int32)
    return jax.lax.switch(layer, [partial(of_layer, layer) for layer in range(layout.head + 1)])


def changed_units(layout: Layout, state: MlpState, swap: Swap, changes: Changes) -> list[jax.Array]:
    """Which units of the hidden layers from the second on may change, bool `[units]` each."""
    changed = []
    if layout.head > 1:
        changed.append((changes.leaving != 0).any(0) | (places(layout, swap, 1) != 0).any(0))
    for layer in range(2, layout.head):
        changed.append(_reached(layout, state, swap, layer, changed[-1]))
    return changed


def _reached(layout: Layout, state: MlpState, swap: Swap, layer: int, sources: jax.Array) -> jax.Array:
    """Units of a layer that may change, given those of the layer before."""

    def reach(units, real, reached):
        return reached | (real[:, None] & (fan_out(layout, state.position, swap, layer, units) != 0)).any(0)

    return chunks(sources, CHUNKS[-1:], reach, (places(layout, swap, layer) != 0).any(0))
