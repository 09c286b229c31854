"""How a swap changes the hidden layers from the second on: activations of a proposal, outputs once accepted."""

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

# Measured on x86 with AVX2; neither changes what is computed.
# Branches that enter a unit, added in one pass.
FAN_IN_CHUNK = 8
# Share of a layer's branches, of which so many are kept and enter changed units, above which a matrix product is
# faster than a sum over kept branches.
DENSE_SHARE = 0.25


def second_change(layout: Layout, swap: Swap, changes: Changes, block: Block) -> Callable[[jax.Array], jax.Array]:
    """How the outputs of the second layer change, as a function from a unit to float32 `[1, block]`."""
    rows = jnp.concatenate([changes.first, changes.at_ends])
    rows = cut(rows, (0, block.start), (4, block.size))
    factors = jnp.concatenate([changes.leaving, places(layout, swap, 1)])
    return lambda unit: jnp.stack([sum(at(factors[j], unit) * rows[j] for j in range(4))])


class Arriving(NamedTuple):
    """What arrives at a hidden layer after the second.

    Attributes:
      layer: its index.
      position: before the swap while it is proposed, else after it.
      swap: the proposal, or None after it.
      neighbours: the kept branches that enter the layer; those of before the swap while it is proposed.
      sources: which units of the layer before may change, bool `[units]`.
      entering: changes of their activations, float32 `[units + 1, samples]`.
      place: 1 where a branch of the swap ends, float32 `[2, units]`.
      direct: what the two branches add at their ends, float32 `[2, block]`.
      at_ends: the same without what the grown one carries of the layer before, float32 `[2, block]`.
      block: samples.
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
    """Collects what arrives at a hidden layer after the second.

    Args:
      layout: what stays the same.
      state: before the swap while it is proposed, else after it.
      swap: the proposal.
      changes: what it changes at its ends.
      layer: index of the layer.
      sources: which units of the layer before may change, bool `[units]`.
      block: samples.
      proposed: whether the swap is still proposed.
    """
    after = swap if proposed else None
    neighbours, entering = state.fan_in[layer - 2], state.cache.scratch[layer - 2]
    place, end = places(layout, swap, layer), ends(layout, swap, layer)
    direct = at_ends = cut(changes.at_ends, (0, block.start), (2, block.size))
    if proposed:
        # The list of kept branches does not hold the grown one yet.
        grows = end.here[1] & sources[end.unit_in[1]]
        width = layout.shapes[layer][1]
        grown = weight_of(layout, state.position, layer, end.unit_in[1] * width + end.unit_out[1])
        row = cut(entering, (end.unit_in[1], block.start), (1, block.size))[0]
        direct = direct.at[1].add(jnp.where(grows, grown * row, 0))
    found = state.position, after, neighbours, sources, entering, place, direct, at_ends, block
    return Arriving(layer, *found)


def change_of_unit(layout: Layout, arrived: Arriving, unit: jax.Array) -> jax.Array:
    """How the output of one unit changes, float32 `[1, block]`: a sum over the kept branches that enter it."""
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
        # Rows of unchanged units hold whatever was there before, perhaps NaN.
        terms = [jnp.where(factors[j] != 0, factors[j] * row(units_in[j]), 0) for j in range(FAN_IN_CHUNK)]
        return change + sum(terms)

    place, direct = arrived.place, arrived.direct
    change = (at(place[0], unit) * direct[0] + at(place[1], unit) * direct[1])[None]
    return jax.lax.fori_loop(0, batch_bound(-(-count // FAN_IN_CHUNK)), add, change)


def change_of_all(layout: Layout, arrived: Arriving, i: jax.Array) -> jax.Array:
    """How the outputs of all units change, float32 `[units, block]`: one matrix product; `i` is 0.

    Depends on the loop it stands in by `i`, lest XLA move it out and compute it in any case.
    """
    layer, block = arrived.layer, arrived.block
    shape = layout.shapes[layer]
    branches = i + jnp.arange(shape[0] * shape[1])
    kernel = kept_weights(layout, arrived.position, arrived.swap, layer, branches).reshape(shape)
    values = cut(arrived.entering, (0, block.start), (shape[0], block.size))
    return dense(kernel, None, jnp.where(arrived.sources[:, None], values, 0)) + arrived.place.T @ arrived.at_ends


def dense_pays(layout: Layout, state: MlpState, layer: int, changed: jax.Array) -> jax.Array:
    """Whether one matrix product is faster than a sum for each changed unit, bool `[]`."""
    work = jnp.where(changed, state.fan_in[layer - 2].count, 0).sum()
    return work > DENSE_SHARE * layout.shapes[layer][0] * layout.shapes[layer][1]


def hidden_activations(
    layout: Layout, state: MlpState, swap: Swap, changes: Changes, changed: list[jax.Array], block: Block
) -> tuple[jax.Array, ...]:
    """Returns the scratch with the activations' changes of the hidden layers from the second on, for one block.

    Args:
      layout: what stays the same.
      state: before the swap.
      swap: the proposal.
      changes: what it changes at its ends.
      changed: which units of each layer from the second on may change, bool `[units]`.
      block: samples.
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
    """Returns the outputs of all layers, those of the hidden layers from the second on changed where accepted.

    Args:
      layout: what stays the same.
      state: after the swap, but for its outputs.
      swap: the proposal.
      changes: what it changes at its ends, 0 where it is not accepted.
      changed: which units of each layer from the second on may change, bool `[units]`.
      accepted: bool `[]`.
    """
    samples = state.cache.outputs[0].shape[1]
    number, size = blocks(samples, BLOCK_SAMPLES)

    def one_block(i, hidden):
        block = Block(jnp.minimum(i * size, samples - size), size)
        # The last block may overlap the one before, whose samples must not be added to twice.
        fresh = True if number == 1 else block.start + jnp.arange(size) >= i * size
        return _block_outputs(layout, state, swap, changes, changed, accepted, block, fresh, hidden)

    hidden = tuple(state.cache.outputs[1 : layout.head])
    times = batch_bound(accepted.astype(jnp.int32)) * number
    hidden = one_block(0, hidden) if number == 1 else jax.lax.fori_loop(0, times, one_block, hidden)
    return [state.cache.outputs[0], *hidden, state.cache.outputs[-1]]


def _block_outputs(layout, state, swap, changes, changed, accepted, block, fresh, hidden):
    """The hidden outputs from the second layer on with the changes of one block of samples added."""
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
