"""The two branches of a swap: their ends, the changes there, and the units that may change in later layers."""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.landscapes.mlp.layout import Layout, mask_of, weight_of
from sa_jax.landscapes.mlp.loops import CHUNKS, chunks, two_rows
from sa_jax.landscapes.mlp.state import Changes, Ends, MlpState
from sa_jax.moves.base import Swap
from sa_jax.types import InputError, PyTree


def ends(layout: Layout, swap: Swap, layer: int) -> Ends:
    """Returns the units that the two branches of a swap connect, for one layer.

    Raises:
      InputError: if the swap changes a weight but the weights of the layout are fixed.
    """
    branches = jnp.stack([swap.pruned, swap.grown])
    if swap.nudge is not None and not layout.moves_weights:
        raise InputError("proposals that change weights need masked_mlp(..., moves_weights=True)")
    swapped = swap.changes_mask
    moved = swapped if swap.nudge is None else jnp.stack([swapped | (swap.nudge != 0), swapped])
    here = (branches >= layout.starts[layer]) & (branches < layout.starts[layer + 1]) & moved
    local = jnp.where(here, branches - layout.starts[layer], 0)
    width = layout.shapes[layer][1]
    return Ends(here, local // width, local % width)


def places(layout: Layout, swap: Swap, layer: int) -> jax.Array:
    """Returns 1 for the unit of the layer that a branch of the swap enters, else 0: float32 `[2, units]`."""
    end = ends(layout, swap, layer)
    width = layout.shapes[layer][1]
    return (end.here[:, None] & (jnp.arange(width)[None] == end.unit_out[:, None])).astype(jnp.float32)


def kept_weights(layout: Layout, position: PyTree, swap: Swap | None, layer: int, local: jax.Array) -> jax.Array:
    """Returns the weights of branches after a swap, 0 for pruned branches: float32 of the shape of `local`.

    Args:
      layout: fixed part of the landscape.
      position: the position before `swap`. If `swap` is None, the weights are those of this position.
      swap: a proposal, or None.
      layer: index of the layer.
      local: indices of the branches within the layer, int32 of any shape.
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
    """Returns the weights of the branches that leave `units`, int32 `[units]`: float32 `[units, outputs]`."""
    width = layout.shapes[layer][1]
    return kept_weights(layout, position, swap, layer, units[:, None] * width + jnp.arange(width)[None])


def first_changes(layout: Layout, state: MlpState, swap: Swap, inputs: jax.Array) -> Changes:
    """Returns the changes at the ends of the two branches, and in the activations of the first layer.

    Args:
      layout: fixed part of the landscape.
      state: state before the swap.
      swap: the proposal.
      inputs: network inputs, float32 `[features, samples]`.
    """
    act, head = layout.act, layout.head
    at_ends = jnp.stack(
        [_added(layout, state, swap, inputs, *branch) for branch in ((swap.pruned, -1), (swap.grown, 1))]
    )
    end = ends(layout, swap, 0)
    # If both branches enter the same unit, the change of this unit counts once, for the first branch.
    one_unit = end.here.all() & (end.unit_out[0] == end.unit_out[1])
    counted = end.here & ~(one_unit & jnp.array([False, True]))
    whole = jnp.where(counted[:, None], at_ends, 0).at[0].add(jnp.where(one_unit, at_ends[1], 0))
    old = two_rows(state.cache.outputs[0], end.unit_out)
    leaving = jnp.zeros((2, 0))
    if head > 0:
        leaving = jnp.where(counted[:, None], fan_out(layout, state.position, swap, 1, end.unit_out), 0)
    changes = Changes(at_ends, act(old + whole) - act(old), leaving)
    # The barrier makes XLA compute the changes once. Without it, XLA would compute them again in every loop, and
    # would keep the old rows for this.
    return jax.lax.optimization_barrier(changes)


def _added(layout: Layout, state: MlpState, swap: Swap, inputs: jax.Array, branch: jax.Array, sign: int):
    """Returns the change of the branch's weight times its activation, float32 `[samples]`, for any layer."""
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
    """Returns which units may change, for each hidden layer from the second on: bool `[units]` each."""
    changed = []
    if layout.head > 1:
        changed.append((changes.leaving != 0).any(0) | (places(layout, swap, 1) != 0).any(0))
    for layer in range(2, layout.head):
        changed.append(_reached(layout, state, swap, layer, changed[-1]))
    return changed


def _reached(layout: Layout, state: MlpState, swap: Swap, layer: int, sources: jax.Array) -> jax.Array:
    """Returns which units of a layer may change, given the units of the previous layer that may change."""

    def reach(units, real, reached):
        return reached | (real[:, None] & (fan_out(layout, state.position, swap, layer, units) != 0)).any(0)

    return chunks(sources, CHUNKS[-1:], reach, (places(layout, swap, layer) != 0).any(0))
