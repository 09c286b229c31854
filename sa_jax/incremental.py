"""The landscape of a masked multilayer perceptron, where a swap costs what it touches.

Pre-activations of every layer are cached as `[units, samples]`, so that a unit's row is contiguous. A swap
changes few of them: in the first layer the rows of one or two units, in the second those of the units
that these feed through kept branches, and so on. Only these rows are read, and the logits are updated
rather than computed anew. How many they are differs from proposal to proposal, while shapes are static:
so loops over chunks of rows run as often as the proposal at hand needs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax import masks, models
from sa_jax.energies import Energy
from sa_jax.landscape import from_energy, most
from sa_jax.models import ACTIVATIONS, Network, check_activation
from sa_jax.moves import Estimates, Swaps, move_fn, swap_mask
from sa_jax.types import InputError, Landscape, PyTree

# Estimates of the energy, for proposals that want them, are made anew after one step for so many branches, rounded
# up to a multiple of the second.
BRANCHES_PER_STEP = 40
LEAST_REFRESH_STEPS = 1_000

# The figures below were measured on x86 with AVX2; none of them changes what is computed.
# A second layer so narrow is updated whole: finding its changed rows would cost more.
NARROW = 32
# Rows of a chunk: the least that holds all changed rows, or the greatest, repeatedly.
CHUNKS = (4, 8, 16, 32)
# Samples worked on at once, so that what a proposal computes stays in the cache.
BLOCK_SAMPLES = 8192
# The same in a full evaluation, whose needs of memory it bounds.
EVALUATED_SAMPLES = 256
# Branches that enter a unit, added in one pass.
FAN_IN_CHUNK = 8
# Swaps are noted, to be made in the best mask too, one for so many branches; after more of them it is copied.
BRANCHES_PER_NOTE = 4096
# Share of a layer's branches, of which so many are kept and enter changed units, above which a matrix product is
# faster than a sum over kept branches.
DENSE_SHARE = 0.25


# Fields of states that a refresh makes anew from the position and the lists, or that hold copies.
RECOMPUTED = frozenset(
    ("outputs", "scratch", "notes", "num_notes", "grow_upto", "prune_weights", "kept_grow", "kept_prune")
    + ("mean", "spread", "passes")
)


class Neighbours(NamedTuple):
    """The kept branches that enter each unit of a layer.

    Attributes:
      units: units at their other end, the first `count` of each row, int16 or int32 `[outputs, inputs]`.
      count: int32 `[outputs]`.
    """

    units: jax.Array
    count: jax.Array


class Weighted(NamedTuple):
    """A mask and the weights of all branches, kept or not: bool and float32 `[total]`."""

    mask: jax.Array
    weights: jax.Array


class MlpState(NamedTuple):
    """A mask and everything that depends on it.

    Attributes:
      position: flat mask, bool `[total]`, or `Weighted`.
      energy: float32 `[]`.
      swaps: state of the proposals, such as the index lists of kept and pruned branches.
      outputs: per layer, its outputs before the activation, float32 `[units, samples]`; last, the logits.
      fan_in: of each kernel between two hidden layers but the first such.
      scratch: changes of activations of the hidden layers but the first, float32 `[units + 1, samples]`, where
        there are at least three; between proposals, nothing that matters.
      notes: the branches swapped since the position was last remembered as the best, int32 `[notes, 2]`.
      num_notes: their number, more than there is room for where some are missing, int32 `[]`.
    """

    position: PyTree
    energy: jax.Array
    swaps: PyTree
    outputs: tuple[jax.Array, ...]
    fan_in: tuple[Neighbours, ...]
    scratch: tuple[jax.Array, ...]
    notes: jax.Array
    num_notes: jax.Array


class Changes(NamedTuple):
    """What a swap changes before anything is carried to a later layer.

    Attributes:
      at_ends: what each of the two branches adds to the unit at its end, float32 `[2, samples]`.
      first: changes of the activations of the first layer's units where they end, float32 `[2, samples]`; 0 where
        a branch lies in another layer, and the second is 0 where both end in one unit.
      leaving: weights after the swap of the branches by which these changes go on, float32 `[2, units]`.
    """

    at_ends: jax.Array
    first: jax.Array
    leaving: jax.Array


class Pending(NamedTuple):
    """A proposal's consequences, up to its acceptance.

    Attributes:
      energy: float32 `[]`.
      changes: see `Changes`.
      changed: which units of the hidden layers from the second on may change, bool `[units]` each.
      logits: float32 `[classes, samples]`.
      scratch: see `MlpState`.
    """

    energy: jax.Array
    changes: Changes
    changed: tuple[jax.Array, ...]
    logits: jax.Array
    scratch: tuple[jax.Array, ...]


class _Ends(NamedTuple):
    """The two branches of a swap seen from one layer, `[2]` each; units 0 where a branch is in another one."""

    here: jax.Array
    unit_in: jax.Array
    unit_out: jax.Array


def masked_mlp(
    network: Network, swaps: Swaps, energy: Energy, activation: str = "relu", weights_move: bool = False
) -> Landscape:
    """Makes the landscape of the masks of a fixed-weight multilayer perceptron.

    Positions are flat masks, bool `[total]` (see `masks`), and data is `(inputs, labels)` with inputs float32
    `[features, samples]`, features first, and labels int32 `[samples]`.

    Args:
      network: the fixed weights; any depth and widths, with or without biases.
      swaps: the proposals, such as `uniform_swap()` or `saliency_swap(...)`.
      energy: of the logits, such as `cross_entropy()`; called with `axis=0`.
      activation: 'relu', 'tanh' or 'gelu'.
      weights_move: whether positions are `Weighted`, whose weights then stand for those of `network`: for
        proposals that change weights, `moves.nudge(...)`.

    Returns:
      A `Landscape`, equal to `full_mlp` up to float rounding where no weights move.

    Raises:
      InputError: an unknown activation; when annealed, proposals that change weights where none move.
    """
    check_activation(activation)
    act = ACTIVATIONS[activation]
    # Views, not one flat array of all: that would be a second copy of the weights.
    weights = [jnp.ravel(kernel) for kernel in network.kernels]
    shapes = network.shapes
    starts = [0]
    for inputs, outputs in shapes:
        starts.append(starts[-1] + inputs * outputs)
    head = len(shapes) - 1
    narrow = head == 2 and shapes[1][1] <= NARROW

    def mask_of(position):
        return position.mask if weights_move else position

    def weight(position, layer, local):
        # Of branches by their number in the layer.
        return position.weights[starts[layer] + local] if weights_move else weights[layer][local]

    def evaluate(position, data, outputs=None):
        # Layer by layer and block by block, into the old outputs: beside them little memory is needed.
        inputs, *targets = data
        mask, samples = mask_of(position), inputs.shape[1]
        number, block = _blocks(samples, EVALUATED_SAMPLES)
        if outputs is None:
            zero = _zero(*jax.tree.leaves(position), inputs)
            outputs = [jnp.full((width, samples), zero) for _, width in shapes]
        entering, evaluated = inputs, []
        kernel_masks = masks.unflatten(mask, shapes)
        kernels = masks.unflatten(position.weights, shapes) if weights_move else network.kernels
        for layer, (kept, kernel, old) in enumerate(zip(kernel_masks, kernels, outputs, strict=True)):
            # One layer's weights at a time: XLA would mask those of all layers first.
            kept, entering = jax.lax.optimization_barrier((kept, entering))
            kernel = jnp.where(kept, kernel, 0)

            def one_block(i, values, layer=layer, kernel=kernel, entering=entering):
                start = jnp.minimum(i * block, samples - block)
                part = _slice(entering, (0, start), (entering.shape[0], block))
                value = _product(kernel.T, network.biases[layer], act(part) if layer else part)
                return _update(values, value, (0, start))

            evaluated.append(jax.lax.fori_loop(0, number, one_block, old))
            entering = evaluated[-1]
        return tuple(evaluated), energy(evaluated[-1], *targets, axis=0)

    def informed(swaps_state, position, outputs, data):
        if swaps.refresh is None:
            return swaps_state
        return swaps.refresh(swaps_state, mask_of(position), estimates(position, outputs, data))

    def estimates(position, outputs, data):
        """The `Estimates` at a position.

        Effects to second order in the branch's weight, with the mean square of the first derivatives, sample by
        sample, for the second one (the empirical Fisher information): large weights are no small change.
        """
        inputs, *targets = data
        samples = inputs.shape[1]
        number, block = _blocks(samples, EVALUATED_SAMPLES)
        by_logits = samples * jax.grad(lambda logits: energy(logits, *targets, axis=0))(outputs[-1])
        kernel_masks = masks.unflatten(mask_of(position), shapes)
        kernels = masks.unflatten(position.weights, shapes) if weights_move else network.kernels
        kept = [jnp.where(mask, kernel, 0) for mask, kernel in zip(kernel_masks, kernels, strict=True)]

        def one_block(i, sums):
            start = jnp.minimum(i * block, samples - block)
            # The last block may overlap the one before, whose samples must not count twice.
            fresh = start + jnp.arange(block) >= i * block
            parts = [_slice(array, (0, start), (array.shape[0], block)) for array in (inputs, *outputs[:-1])]
            signal = jnp.where(fresh, _slice(by_logits, (0, start), (by_logits.shape[0], block)), 0)
            new = list(sums)
            for layer in reversed(range(len(shapes))):
                entering = act(parts[layer]) if layer else parts[layer]
                first, second = sums[layer]
                new[layer] = first + entering @ signal.T, second + (entering**2) @ (signal**2).T
                if layer:
                    signal = jax.vjp(act, parts[layer])[1](kept[layer] @ signal)[0]
            return new

        zero = _zero(*jax.tree.leaves(position), inputs)
        nothing = [(jnp.full(shape, zero), jnp.full(shape, zero)) for shape in shapes]
        sums = jax.lax.fori_loop(0, number, one_block, nothing)
        slopes, curvatures = (masks.flatten([of_layer[i] for of_layer in sums]) / samples for i in range(2))
        weights, mask = masks.flatten(kernels), mask_of(position)
        effects = weights * slopes + jnp.where(mask, -0.5, 0.5) * weights**2 * curvatures
        # A pruned branch acts as a weight of 0 would, and comes back with the weight it has.
        return Estimates(effects, slopes + jnp.where(mask, 0, weights * curvatures), curvatures)

    def init(position, data):
        mask = jnp.asarray(mask_of(position), bool)
        position = Weighted(mask, jnp.asarray(position.weights, jnp.float32)) if weights_move else mask
        outputs, value = evaluate(position, data)
        fan_in = tuple(map(_neighbours, masks.unflatten(mask, shapes)[2:head]))
        # One row more than units: see `_each`.
        sizes = [(shapes[layer][1] + 1, data[0].shape[1]) for layer in range(1, head) if head > 2]
        scratch = tuple(jnp.full(size, _zero(mask, data[0])) for size in sizes)
        notes = jnp.zeros((-(-mask.size // BRANCHES_PER_NOTE), 2), jnp.int32)
        drawn = informed(swaps.init(mask), position, outputs, data)
        return MlpState(position, value, drawn, outputs, fan_in, scratch, notes, jnp.int32(0))

    def propose(noise, state, temperature):
        del temperature
        return swaps.propose(noise, state.swaps, mask_of(state.position))

    def ends(swap, layer):
        branches = jnp.stack([swap.pruned, swap.grown])
        if swap.nudge is not None and not weights_move:
            raise InputError("proposals that change weights need masked_mlp(..., weights_move=True)")
        swapped = swap.pruned != swap.grown
        moved = swapped if swap.nudge is None else jnp.stack([swapped | (swap.nudge != 0), swapped])
        here = (branches >= starts[layer]) & (branches < starts[layer + 1]) & moved
        local = jnp.where(here, branches - starts[layer], 0)
        width = shapes[layer][1]
        return _Ends(here, local // width, local % width)

    def places(swap, layer):
        # [2, units]: 1 where a branch of the swap ends.
        end = ends(swap, layer)
        return (end.here[:, None] & (jnp.arange(shapes[layer][1]) == end.unit_out[:, None])).astype(jnp.float32)

    def kept_weights(position, swap, layer, local):
        # Of branches by their number in the layer; 0 where pruned, after the swap where it is still proposed.
        branches = starts[layer] + local
        kept = mask_of(position)[branches]
        if swap is not None:
            swapped = swap.pruned != swap.grown
            kept = (kept & ~(swapped & (branches == swap.pruned))) | (swapped & (branches == swap.grown))
        value = weight(position, layer, local)
        if swap is not None and swap.nudge is not None:
            value = value + jnp.where(branches == swap.pruned, swap.nudge, 0)
        return jnp.where(kept, value, 0)

    def fan_out(position, swap, layer, units):
        # [units, outputs]: weights of the branches that leave each of the units.
        width = shapes[layer][1]
        return kept_weights(position, swap, layer, units[:, None] * width + jnp.arange(width))

    def first_changes(state, swap, inputs):
        def added(branch, sign):
            # Change of the branch's weight times activation, `[samples]`, whichever its layer.
            def of_layer(layer):
                local = branch - starts[layer]
                entering, unit = [inputs, *state.outputs][layer], local // shapes[layer][1]
                row = jax.lax.dynamic_index_in_dim(entering, unit, keepdims=False)
                change = sign * jnp.where(swap.pruned != swap.grown, weight(state.position, layer, local), 0)
                if swap.nudge is not None and sign < 0:
                    change = jnp.where(swap.nudge != 0, swap.nudge, change)
                return change * (act(row) if layer else row)

            layer = (branch >= jnp.array(starts[1:-1], jnp.int32)).sum(dtype=jnp.int32)
            return jax.lax.switch(layer, [partial(of_layer, layer) for layer in range(head + 1)])

        at_ends = jnp.stack([added(swap.pruned, -1), added(swap.grown, 1)])
        end = ends(swap, 0)
        # When both ends lie in one unit its whole change counts once, as the first.
        one_unit = end.here.all() & (end.unit_out[0] == end.unit_out[1])
        counted = end.here & ~(one_unit & jnp.array([False, True]))
        whole = jnp.where(counted[:, None], at_ends, 0).at[0].add(jnp.where(one_unit, at_ends[1], 0))
        old = _rows(state.outputs[0], end.unit_out)
        leaving = jnp.zeros((2, 0))
        if head > 0:
            leaving = jnp.where(counted[:, None], fan_out(state.position, swap, 1, end.unit_out), 0)
        changes = Changes(at_ends, act(old + whole) - act(old), leaving)
        # Once for all that follows: XLA would compute them again in every loop, and keep the old rows for it.
        return jax.lax.optimization_barrier(changes)

    def second_change(swap, changes, start, block):
        # `unit -> [1, block]`: how the outputs of the second layer change.
        rows = jnp.concatenate([changes.first, changes.at_ends])
        rows = _slice(rows, (0, start), (4, block))
        factors = jnp.concatenate([changes.leaving, places(swap, 1)])
        return lambda unit: jnp.stack([sum(_at(factors[j], unit) * rows[j] for j in range(4))])

    def later_change(state, swap, changes, layer, sources, start, block, proposed):
        """How the outputs of a hidden layer after the second change, given changed units of the one before.

        Returns it as a function `unit -> [1, block]`, and for all units at once as `i -> [units, block]`, whose
        argument is 0. While proposed, `state` is the one before the swap, else the one after it.
        """
        shape, after = shapes[layer], swap if proposed else None
        neighbours, entering = state.fan_in[layer - 2], state.scratch[layer - 2]
        place, end = places(swap, layer), ends(swap, layer)
        at_ends = _slice(changes.at_ends, (0, start), (2, block))

        def row(unit):
            return _slice(entering, (unit, start), (1, block))

        direct = at_ends
        if proposed:
            # The list of kept branches does not hold the grown one yet.
            grows = end.here[1] & sources[end.unit_in[1]]
            grown = weight(state.position, layer, end.unit_in[1] * shape[1] + end.unit_out[1])
            direct = direct.at[1].add(jnp.where(grows, grown * row(end.unit_in[1])[0], 0))

        def of_unit(unit):
            count = _at(neighbours.count, unit)

            def add(i, change):
                slots = i * FAN_IN_CHUNK + jnp.arange(FAN_IN_CHUNK)
                units_in = neighbours.units[unit, slots].astype(jnp.int32)
                factors = kept_weights(state.position, after, layer, units_in * shape[1] + unit)
                factors = jnp.where((slots < count) & sources[units_in], factors, 0)
                # Rows of unchanged units hold whatever was there before, perhaps NaN.
                terms = [jnp.where(factors[j] != 0, factors[j] * row(units_in[j]), 0) for j in range(FAN_IN_CHUNK)]
                return change + sum(terms)

            change = (_at(place[0], unit) * direct[0] + _at(place[1], unit) * direct[1])[None]
            return jax.lax.fori_loop(0, most(-(-count // FAN_IN_CHUNK)), add, change)

        def of_all(i):
            # Depends on the loop it stands in by i, lest XLA move it out and compute it in any case.
            kernel = kept_weights(state.position, after, layer, i + jnp.arange(shape[0] * shape[1])).reshape(shape)
            values = _slice(entering, (0, start), (shape[0], block))
            return _dense(kernel, None, jnp.where(sources[:, None], values, 0)) + place.T @ at_ends

        return of_unit, of_all

    def reached(state, swap, layer, sources):
        # Units of a layer that may change, given those of the one before.
        def reach(units, real, reached):
            return reached | (real[:, None] & (fan_out(state.position, swap, layer, units) != 0)).any(0)

        return _chunks(sources, CHUNKS[-1:], reach, (places(swap, layer) != 0).any(0))

    def dense_pays(state, layer, changed):
        work = jnp.where(changed, state.fan_in[layer - 2].count, 0).sum()
        return work > DENSE_SHARE * shapes[layer][0] * shapes[layer][1]

    def hidden_activations(state, swap, changes, changed, start, block):
        """Writes the changes of the hidden layers' activations from the second layer on to `scratch`."""

        def change_of(old, change):
            return act(old + change) - act(old)

        def write(layer, of_unit):
            def one(unit, scratch):
                old = _slice(state.outputs[layer], (unit, start), (1, block))
                return _update(scratch, change_of(old, of_unit(unit)), (unit, start))

            return one

        scratch = list(state.scratch)
        scratch[0] = _each(changed[0], write(1, second_change(swap, changes, start, block)), scratch[0])
        for layer in range(2, head):
            before = state._replace(scratch=tuple(scratch))
            sources, units = changed[layer - 2 : layer]
            of_unit, of_all = later_change(before, swap, changes, layer, sources, start, block, True)
            pays = dense_pays(state, layer, units)
            scratch[layer - 1] = _each(units & ~pays, write(layer, of_unit), scratch[layer - 1])

            def write_all(i, scratch, layer=layer, of_all=of_all, pays=pays):
                old = _slice(state.outputs[layer], (0, start), (shapes[layer][1], block))
                kept = _slice(scratch, (0, start), old.shape)
                new = jnp.where(pays, change_of(old, of_all(i)), kept)
                return _update(scratch, new, (0, start))

            times = most(pays.astype(jnp.int32))
            scratch[layer - 1] = jax.lax.fori_loop(0, times, write_all, scratch[layer - 1])
        return tuple(scratch)

    def hidden_outputs(state, swap, changes, changed, accepted):
        """Adds the changes of the hidden layers' outputs from the second layer on, once accepted."""
        samples = state.outputs[0].shape[1]
        number, block = _blocks(samples, BLOCK_SAMPLES)

        def one_block(i, hidden):
            hidden, start = list(hidden), jnp.minimum(i * block, samples - block)
            # The last block may overlap the one before, whose samples must not be added to twice.
            fresh = True if number == 1 else start + jnp.arange(block) >= i * block

            def add_row(of_unit):
                def one(unit, value):
                    old = _slice(value, (unit, start), (1, block))
                    return _update(value, old + jnp.where(fresh, of_unit(unit), 0), (unit, start))

                return one

            of_unit = second_change(swap, changes, start, block)
            hidden[0] = _each(changed[0] & accepted, add_row(of_unit), hidden[0])
            for layer in range(2, head):
                sources, units = changed[layer - 2 : layer]
                of_unit, of_all = later_change(state, swap, changes, layer, sources, start, block, False)
                pays = dense_pays(state, layer, units)
                hidden[layer - 1] = _each(units & ~pays & accepted, add_row(of_unit), hidden[layer - 1])

                def add_all(j, value, of_all=of_all, pays=pays):
                    old = _slice(value, (0, start), (value.shape[0], block))
                    change = jnp.where(fresh & pays & accepted, of_all(j), 0)
                    return _update(value, old + change, (0, start))

                times = most((pays & accepted).astype(jnp.int32))
                hidden[layer - 1] = jax.lax.fori_loop(0, times, add_all, hidden[layer - 1])
            return tuple(hidden)

        hidden = tuple(state.outputs[1:head])
        times = most(accepted.astype(jnp.int32)) * number
        hidden = one_block(0, hidden) if number == 1 else jax.lax.fori_loop(0, times, one_block, hidden)
        return [state.outputs[0], *hidden, state.outputs[-1]]

    def block_logits(state, swap, changes, changed, start, block):
        """The logits of one block of samples after the swap; `state.scratch` holds the hidden changes."""
        logits = _slice(state.outputs[-1], (0, start), (shapes[head][1], block))
        at_ends = _slice(changes.at_ends, (0, start), (2, block))
        first = _slice(changes.first, (0, start), (2, block))
        if narrow:
            second = _slice(state.outputs[1], (0, start), (shapes[1][1], block))
            factors = jnp.concatenate([changes.leaving, places(swap, 1)])
            rows = jnp.concatenate([first, at_ends])
            second = second + sum(factors[j][:, None] * rows[j] for j in range(4))
            kernel = fan_out(state.position, swap, head, jnp.arange(shapes[1][1]))
            return _dense(kernel, network.biases[head], act(second))
        place = places(swap, head)
        direct = most((place != 0).any().astype(jnp.int32)) > 0
        logits = jax.lax.cond(direct, lambda: logits + place.T @ at_ends, lambda: logits)
        if head == 0:
            return logits
        if head == 1:
            return logits + changes.leaving.T @ first
        if head == 2:
            sources = jnp.concatenate([first, at_ends])
            coefficients = jnp.concatenate([changes.leaving, places(swap, 1)])

        def add(units, real, logits):
            if head == 2:
                old = _gather(state.outputs[1], units, start, block)
                factors = jnp.where(real, coefficients[:, units], 0)
                change = act(old + sum(factors[j][:, None] * sources[j] for j in range(4))) - act(old)
            else:
                change = jnp.where(real[:, None], _gather(state.scratch[-1], units, start, block), 0)
            return logits + _dense(fan_out(state.position, swap, head, units), None, change)

        return _chunks(changed[-1], CHUNKS, add, logits)

    def delta(state, swap, data):
        inputs, *targets = data
        changes = first_changes(state, swap, inputs)
        changed = []
        if head > 1:
            changed.append((changes.leaving != 0).any(0) | (places(swap, 1) != 0).any(0))
        for layer in range(2, head):
            changed.append(reached(state, swap, layer, changed[-1]))
        samples = inputs.shape[1]
        number, block = _blocks(samples, samples if narrow else BLOCK_SAMPLES)

        def one_block(i, carry):
            logits, scratch = carry
            start = jnp.minimum(i * block, samples - block)
            now = state._replace(scratch=scratch)
            if head > 2:
                now = now._replace(scratch=hidden_activations(now, swap, changes, changed, start, block))
            new = block_logits(now, swap, changes, changed, start, block)
            return new if number == 1 else _update(logits, new, (0, start)), now.scratch

        if number == 1:
            logits, scratch = one_block(0, (None, state.scratch))
        else:
            carry = state.outputs[-1], state.scratch
            logits, scratch = jax.lax.fori_loop(0, number, one_block, carry)
        # Where nothing leads on to the logits the energy is what it was.
        last = changed[-1] if head > 1 else changes.leaving != 0
        touched = (places(swap, head) != 0).any() | last.any()
        evaluated = most(touched.astype(jnp.int32)) > 0
        value = jax.lax.cond(evaluated, lambda: energy(logits, *targets, axis=0), lambda: state.energy)
        value = jnp.where(touched, value, state.energy)
        return value - state.energy, Pending(value, changes, tuple(changed), logits, scratch)

    def commit(state, swap, pending, accepted):
        changes = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), pending.changes)
        swapped = accepted & (swap.pruned != swap.grown)
        fan_in = tuple(
            _swapped(neighbours, ends(swap, layer), swapped) for layer, neighbours in enumerate(state.fan_in, 2)
        )
        # Written before it is read again: XLA would copy it to read it first.
        position = swap_mask(mask_of(state.position), swap, accepted)
        if weights_move:
            nudge = 0 if swap.nudge is None else jnp.where(accepted, swap.nudge, 0)
            position = Weighted(position, state.position.weights.at[swap.pruned].add(nudge))
        state = state._replace(position=position, fan_in=fan_in, scratch=pending.scratch)
        outputs = list(state.outputs)
        if head > 1:
            outputs = hidden_outputs(state, swap, changes, pending.changed, accepted)
        if head > 0:
            end = ends(swap, 0)
            added = jnp.where(end.here[:, None], changes.at_ends, 0)
            outputs[0] = outputs[0].at[end.unit_out[0]].add(added[0]).at[end.unit_out[1]].add(added[1])
        times = most(accepted.astype(jnp.int32))
        outputs[-1] = jax.lax.fori_loop(
            0, times, lambda _, logits: jnp.where(accepted, pending.logits, logits), outputs[-1]
        )
        place = jnp.where(accepted, state.num_notes, len(state.notes))
        return state._replace(
            energy=jnp.where(accepted, pending.energy, state.energy),
            swaps=swaps.commit(state.swaps, swap, accepted),
            outputs=tuple(outputs),
            notes=state.notes.at[place].set(jnp.stack([swap.pruned, swap.grown]), mode="drop"),
            num_notes=state.num_notes + accepted.astype(jnp.int32),
        )

    def remember(best, state, improved):
        complete = state.num_notes <= len(state.notes)

        def repeat(i, best):
            # A chain without a new best, vmapped with one that has one, goes through its notes and writes nothing.
            noted = improved & complete & (i < state.num_notes)

            def set_both(best, now):
                branches = jnp.where(noted, state.notes[i], best.size)
                return best.at[branches].set(now[branches], mode="drop")

            return jax.tree.map(set_both, best, state.position)

        def copy(_, best):
            copied = improved & ~complete
            return jax.tree.map(lambda best, now: jnp.where(copied, now, best), best, state.position)

        best = jax.lax.fori_loop(0, most(jnp.where(improved & complete, state.num_notes, 0)), repeat, best)
        best = jax.lax.fori_loop(0, most((improved & ~complete).astype(jnp.int32)), copy, best)
        return best, state._replace(num_notes=jnp.where(improved, 0, state.num_notes))

    def refresh(state, data):
        outputs, value = evaluate(state.position, data, state.outputs)
        drawn = informed(state.swaps, state.position, outputs, data)
        return state._replace(outputs=outputs, energy=value, swaps=drawn)

    landscape = Landscape(init, swaps.draw, propose, delta, commit, refresh, remember)
    if swaps.refresh is None:
        return landscape
    # The more branches, the more the estimates cost, and the longer they hold for most of them.
    times = -(-network.total // (BRANCHES_PER_STEP * LEAST_REFRESH_STEPS))
    return landscape._replace(refresh_steps=times * LEAST_REFRESH_STEPS)


def full_mlp(
    network: Network,
    swaps: Swaps,
    energy: Energy,
    activation: str = "relu",
    mask_of: Callable[[jax.Array], jax.Array] = lambda mask: mask,
) -> Landscape:
    """Makes the same landscape by full evaluation, for comparison: arguments and data as for `masked_mlp`.

    Positions are `(mask, swaps.init(mask))`, so that a proposal does not rebuild the index lists. With `mask_of`
    the first may be anything flat and boolean of which it makes the mask, bool `[total]`, such as blocks.

    Raises:
      InputError: an unknown activation.
    """
    check_activation(activation)

    def energy_fn(position, inputs, *targets):
        masked = models.masked(network, mask_of(position[0]))
        value = _dense(masked.kernels[0], masked.biases[0], inputs)
        for kernel, bias in zip(masked.kernels[1:], masked.biases[1:], strict=True):
            value = _dense(kernel, bias, ACTIVATIONS[activation](value))
        return energy(value, *targets, axis=0)

    return from_energy(energy_fn, move_fn(swaps))


def _dense(kernel, bias, entering):
    # Transposed beforehand the product is a third faster on a CPU; without the barrier XLA undoes that.
    return _product(jax.lax.optimization_barrier(kernel.T), bias, entering)


def _product(transposed, bias, entering):
    value = transposed @ entering
    return value if bias is None else value + bias[:, None]


def _zero(*arrays):
    # Under shard_map what is written to must vary over the mesh as what is written does. Compiles to a constant.
    varying = sum((array.ravel()[0] != 0).astype(jnp.int32) for array in arrays) > 0
    return jnp.where(varying, jnp.float32(0), jnp.float32(0))


def _blocks(samples, most):
    """How many blocks of samples to work on, and of what size; the last may overlap the one before."""
    number = -(-samples // most)
    return number, -(-samples // number)


def _slice(array, start, sizes):
    return jax.lax.dynamic_slice(array, [jnp.asarray(index, jnp.int32) for index in start], sizes)


def _update(array, part, start):
    return jax.lax.dynamic_update_slice(array, part, [jnp.asarray(index, jnp.int32) for index in start])


def _rows(array, units):
    return jnp.stack([jax.lax.dynamic_index_in_dim(array, units[j], keepdims=False) for j in range(2)])


def _gather(array, units, start, block):
    # `array[units, start : start + block]`
    return jax.vmap(lambda unit: _slice(array, (unit, start), (1, block))[0])(units)


def _at(array, unit):
    # 0 at the end, where `_each` sends chains that have no unit left.
    return array.at[unit].get(mode="fill", fill_value=0)


def _chunks(changed, sizes, body, carry):
    """Calls `body(units, real, carry) -> carry` with the changed units, in order, a chunk at a time.

    All units come up in one chunk of the least size that holds them, or in several of the greatest. A chunk
    is filled up with arbitrary units that are not real.
    """
    width, own = changed.size, changed.sum(dtype=jnp.int32)
    count, upto = most(own), _running_count(changed)
    smaller = 0
    for size in sizes:
        if size == sizes[-1]:
            times = jnp.where(count > smaller, -(-count // size), 0)
        else:
            times = ((count > smaller) & (count <= size)).astype(jnp.int32)

        def chunk(i, carry, size=size):
            wanted = i * size + 1 + jnp.arange(size)
            units = jnp.minimum(jnp.searchsorted(upto, wanted, method="scan_unrolled"), width - 1)
            return body(units, wanted <= own, carry)

        carry = jax.lax.fori_loop(0, times, chunk, carry)
        smaller = size
    return carry


def _running_count(changed):
    """The cumulative sum of a boolean vector, int32 of the same shape."""
    # Counted in groups by a product, since a long cumulative sum is slow on a CPU. Whole numbers: exact.
    groups = jnp.pad(changed, (0, -changed.size % 32)).reshape(-1, 32).astype(jnp.float32)
    within = groups @ jnp.triu(jnp.ones((32, 32)))
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return (within + before[:, None]).astype(jnp.int32).reshape(-1)[: changed.size]


def _each(changed, body, carry):
    """Calls `body(unit, carry) -> carry` with each changed unit, in order, and under vmap also with `width`."""

    def chunk(units, real, carry):
        units = jnp.where(real, units, changed.size)
        number = most(real.sum(dtype=jnp.int32))
        return jax.lax.fori_loop(0, number, lambda i, carry: body(units[i], carry), carry)

    return _chunks(changed, CHUNKS[-1:], chunk, carry)


def _neighbours(kept):
    kept = kept.T
    dtype = jnp.int16 if kept.shape[1] < 2**15 else jnp.int32
    units = jnp.argsort(~kept, axis=1, stable=True).astype(dtype)
    return Neighbours(jnp.pad(units, ((0, 0), (0, -kept.shape[1] % FAN_IN_CHUNK))), kept.sum(1, dtype=jnp.int32))


def _swapped(neighbours, end, accepted):
    """The lists of kept branches after a swap."""

    def update(_, neighbours):
        units, count = neighbours
        into, unit = end.unit_out[0], end.unit_in[0]
        prunes = accepted & end.here[0]
        last = count[into] - 1
        slot = jnp.where(units[into] == unit, jnp.arange(units.shape[1]), units.shape[1]).min()
        slot = jnp.where(prunes, jnp.minimum(slot, last), last)
        units = units.at[into, slot].set(units[into, last])
        count = count.at[into].add(-prunes.astype(jnp.int32))
        into, unit = end.unit_out[1], end.unit_in[1]
        grows = accepted & end.here[1]
        slot = jnp.where(grows, count[into], units.shape[1])
        units = units.at[into, slot].set(unit.astype(units.dtype), mode="drop")
        return Neighbours(units, count.at[into].add(grows.astype(jnp.int32)))

    return jax.lax.fori_loop(0, most((accepted & end.here.any()).astype(jnp.int32)), update, neighbours)
