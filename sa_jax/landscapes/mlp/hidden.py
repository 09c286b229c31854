"""Computes how a swap changes the hidden layers from the second on.

For a proposal these are changes of activations. For an accepted proposal they are the new outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.ends import ends, kept_weights, places
from sa_jax.landscapes.mlp.layout import Layout, weight_of
from sa_jax.landscapes.mlp.loops import BLOCK_SAMPLES, at, blocks, cut, dense, each, update
from sa_jax.landscapes.mlp.state import Block, Changes, MlpState, Neighbours
from sa_jax.moves.base import Swap
from sa_jax.types import PyTree

# Both values were measured on x86 with AVX2. They do not change the results.
# Number of branches into a unit that are added in one pass.
FAN_IN_CHUNK = 8
# If more than this share of a layer's branches are kept and enter changed units, a matrix product is faster than
# sums over kept branches.
DENSE_SHARE = 0.25


def second_change(layout: Layout, swap: Swap, changes: Changes, block: Block) -> Callable[[jax.Array], jax.Array]:
    """Returns the function from a unit of the second layer to the change of its output, float32 `[1, block]`."""
    rows = jnp.concatenate([changes.first, changes.at_ends])
    rows = cut(rows, (0, block.start), (4, block.size))
    factors = jnp.concatenate([changes.leaving, places(layout, swap, 1)])
    return lambda unit: jnp.stack([sum(at(factors[j], unit) * rows[j] for j in range(4))])


class Arriving(NamedTuple):
    """The changes that enter a hidden layer after the second.

    Attributes:
      layer: index of the layer.
      position: the position before the swap while the swap is proposed, and after the swap once it is accepted.
      swap: the proposal; None once it is accepted.
      neighbours: the kept branches of `position` that enter the layer.
      sources: which units of the previous layer may change.
      entering: changes of the activations of the previous layer.
      place: 1 for the unit that a branch of the swap enters, else 0.
      direct: changes that the two branches of the swap cause in the units that they enter.
      at_ends: `direct` without the effect of a change in the previous layer that passes through the grown branch.
      block: block of samples.
    """

    layer: int
    position: PyTree
    swap: Swap | None
    neighbours: Neighbours
    sources: jax.Array  # bool [units]
    entering: jax.Array  # float32 [units + 1, samples]
    place: jax.Array  # float32 [2, units]
    direct: jax.Array  # float32 [2, block]
    at_ends: jax.Array  # float32 [2, block]
    block: Block


def arriving(
    layout: Layout,
    state: MlpState,
    swap: Swap,
    changes: Changes,
    layer: int,
    sources: jax.Array,
    block: Block,
    proposed: bool,
) -> Arriving:
    """Collects the changes that enter a hidden layer after the second.

    Args:
      layout: fixed part of the landscape.
      state: the state before the swap while the swap is proposed, and after the swap once it is accepted.
      swap: the proposal.
      changes: changes at the ends of the two branches.
      layer: index of the layer.
      sources: which units of the previous layer may change, bool `[units]`.
      block: block of samples.
      proposed: True while the swap is proposed, False once it is accepted.
    """
    after = swap if proposed else None
    neighbours, entering = state.fan_in[layer - 2], state.cache.scratch[layer - 2]
    place, end = places(layout, swap, layer), ends(layout, swap, layer)
    direct = at_ends = cut(changes.at_ends, (0, block.start), (2, block.size))
    if proposed:
        # The list of kept branches does not contain the grown branch yet.
        grows = end.here[1] & sources[end.unit_in[1]]
        width = layout.shapes[layer][1]
        grown = weight_of(layout, state.position, layer, end.unit_in[1] * width + end.unit_out[1])
        row = cut(entering, (end.unit_in[1], block.start), (1, block.size))[0]
        direct = direct.at[1].add(jnp.where(grows, grown * row, 0))
    found = state.position, after, neighbours, sources, entering, place, direct, at_ends, block
    return Arriving(layer, *found)


def change_of_unit(layout: Layout, arrived: Arriving, unit: jax.Array) -> jax.Array:
    """Returns the change of one unit's output, float32 `[1, block]`, as a sum over the kept branches into it."""
    layer, neighbours, sources, block = arrived.layer, arrived.neighbours, arrived.sources, arrived.block
    count = at(neighbours.count, unit)

    def row(unit):
        return cut(arrived.entering, (unit, block.start), (1, block.size))

    def add(i, change):
        slots = i * FAN_IN_CHUNK + jnp.arange(FAN_IN_CHUNK)
        units_in = neighbours.units[unit, slots].astype(jnp.int32)
        branches = units_in * layout.shapes[layer][1] + unit
        factors = kept_weights(layout, arrived.position, arrived.swap, layer, branches)
        factors = jnp.where((slots < count) & sources[units_in], factors, 0)
        # Rows of unchanged units hold old values, which may be NaN.
        terms = [jnp.where(factors[j] != 0, factors[j] * row(units_in[j]), 0) for j in range(FAN_IN_CHUNK)]
        return change + sum(terms)

    place, direct = arrived.place, arrived.direct
    change = (at(place[0], unit) * direct[0] + at(place[1], unit) * direct[1])[None]
    return jax.lax.fori_loop(0, batch_bound(-(-count // FAN_IN_CHUNK)), add, change)


def change_of_all(layout: Layout, arrived: Arriving, i: jax.Array) -> jax.Array:
    """Returns the changes of all units' outputs, float32 `[units, block]`, by one matrix product.

    `i` is the index of the surrounding loop and always 0. The product depends on it. Otherwise XLA would move the
    product out of the loop, and would compute it even if the loop does not run.
    """
    layer, block = arrived.layer, arrived.block
    shape = layout.shapes[layer]
    branches = i + jnp.arange(shape[0] * shape[1])
    kernel = kept_weights(layout, arrived.position, arrived.swap, layer, branches).reshape(shape)
    values = cut(arrived.entering, (0, block.start), (shape[0], block.size))
    return dense(kernel, None, jnp.where(arrived.sources[:, None], values, 0)) + arrived.place.T @ arrived.at_ends


def dense_pays(layout: Layout, state: MlpState, layer: int, changed: jax.Array) -> jax.Array:
    """Returns whether one matrix product is faster than a sum for each changed unit, bool `[]`."""
    work = jnp.where(changed, state.fan_in[layer - 2].count, 0).sum()
    return work.astype(jnp.float32) > DENSE_SHARE * layout.shapes[layer][0] * layout.shapes[layer][1]


def hidden_activations(
    layout: Layout, state: MlpState, swap: Swap, changes: Changes, changed: list[jax.Array], block: Block
) -> tuple[jax.Array, ...]:
    """Returns the scratch with the changes of activations in the hidden layers from the second on, for one block.

    Args:
      layout: fixed part of the landscape.
      state: state before the swap.
      swap: the proposal.
      changes: changes at the ends of the two branches.
      changed: which units may change, for each hidden layer from the second on, bool `[units]` each.
      block: block of samples.
    """

    def change_of(old, change):
        return layout.act(old + change) - layout.act(old)

    def write(layer, of_unit):
        def one(unit, scratch):
            old = cut(state.cache.outputs[layer], (unit, block.start), (1, block.size))
            return update(scratch, change_of(old, of_unit(unit)), (unit, block.start))

        return one

    scratch = list(state.cache.scratch)
    scratch[0] = each(changed[0], write(1, second_change(layout, swap, changes, block)), scratch[0])
    for layer in range(2, layout.head):
        before = state.with_cache(scratch=tuple(scratch))
        sources, units = changed[layer - 2 : layer]
        arrived = arriving(layout, before, swap, changes, layer, sources, block, proposed=True)
        pays = dense_pays(layout, state, layer, units)
        of_unit = partial(change_of_unit, layout, arrived)
        scratch[layer - 1] = each(units & ~pays, write(layer, of_unit), scratch[layer - 1])

        def write_all(i, scratch, layer=layer, arrived=arrived, pays=pays):
            old = cut(state.cache.outputs[layer], (0, block.start), (layout.shapes[layer][1], block.size))
            kept = cut(scratch, (0, block.start), old.shape)
            new = jnp.where(pays, change_of(old, change_of_all(layout, arrived, i)), kept)
            return update(scratch, new, (0, block.start))

        times = batch_bound(pays.astype(jnp.int32))
        scratch[layer - 1] = jax.lax.fori_loop(0, times, write_all, scratch[layer - 1])
    return tuple(scratch)


def hidden_outputs(
    layout: Layout,
    state: MlpState,
    swap: Swap,
    changes: Changes,
    changed: tuple[jax.Array, ...],
    accepted: jax.Array,
) -> list[jax.Array]:
    """Returns the outputs of all layers; if accepted, those of the hidden layers from the second on are updated.

    Args:
      layout: fixed part of the landscape.
      state: state after the swap, except that its outputs are not updated yet.
      swap: the proposal.
      changes: changes at the ends of the two branches; 0 if the proposal is not accepted.
      changed: which units may change, for each hidden layer from the second on, bool `[units]` each.
      accepted: whether the proposal is accepted, bool `[]`.
    """
    samples = state.cache.outputs[0].shape[1]
    number, size = blocks(samples, BLOCK_SAMPLES)

    def one_block(i, hidden):
        block = Block(jnp.minimum(i * size, samples - size), size)
        # The last block may overlap the previous block. The samples in both blocks must not be updated twice.
        fresh = True if number == 1 else (block.start + jnp.arange(size) >= i * size)[None]
        return _block_outputs(layout, state, swap, changes, changed, accepted, block, fresh, hidden)

    hidden = tuple(state.cache.outputs[1 : layout.head])
    times = batch_bound(accepted.astype(jnp.int32)) * number
    hidden = one_block(0, hidden) if number == 1 else jax.lax.fori_loop(0, times, one_block, hidden)
    return [state.cache.outputs[0], *hidden, state.cache.outputs[-1]]


def _block_outputs(layout, state, swap, changes, changed, accepted, block, fresh, hidden):
    """Returns the outputs of the hidden layers from the second on, updated for one block of samples."""
    hidden = list(hidden)

    def add_row(of_unit):
        def one(unit, value):
            old = cut(value, (unit, block.start), (1, block.size))
            return update(value, old + jnp.where(fresh, of_unit(unit), 0), (unit, block.start))

        return one

    of_unit = second_change(layout, swap, changes, block)
    hidden[0] = each(changed[0] & accepted, add_row(of_unit), hidden[0])
    for layer in range(2, layout.head):
        sources, units = changed[layer - 2 : layer]
        arrived = arriving(layout, state, swap, changes, layer, sources, block, proposed=False)
        of_unit = partial(change_of_unit, layout, arrived)
        pays = dense_pays(layout, state, layer, units)
        hidden[layer - 1] = each(units & ~pays & accepted, add_row(of_unit), hidden[layer - 1])

        def add_all(j, value, arrived=arrived, pays=pays):
            old = cut(value, (0, block.start), (value.shape[0], block.size))
            change = jnp.where(fresh & pays & accepted, change_of_all(layout, arrived, j), 0)
            return update(value, old + change, (0, block.start))

        times = batch_bound((pays & accepted).astype(jnp.int32))
        hidden[layer - 1] = jax.lax.fori_loop(0, times, add_all, hidden[layer - 1])
    return tuple(hidden)
