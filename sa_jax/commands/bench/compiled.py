"""The incremental algorithm as a compiled loop on one core, for comparison in `bench`. Needs Numba.

As in `landscapes.mlp`, the outputs of every layer before its activation are cached as `[units, samples]`. A swap
changes the rows of its two ends; a changed unit changes the rows to which its kept branches lead. Samples are
taken in blocks small enough for a cache, and each block passes through all layers and the cross-entropy. Arrays
over samples have the shape `[blocks, ..., block]`, the last block padded with zeros.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from sa_jax.networks.mlp import Network

# Most samples in a block. With more, a block does not fit into the cache. With fewer, the loop over units costs
# more, and the rows of an accepted proposal have to be computed again.
MAX_BLOCK = 2_500
# Partial products of the softmax sums, so that one logarithm is taken per `block / LANES` samples.
LANES = 32

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, LOWEST = np.float32(-1e30), np.float32(-87)
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


class Problem(NamedTuple):
    """The fixed arrays. Units are numbered over all layers, branches as in flat masks.

    Attributes:
      inputs: float32 `[blocks, features, block]`.
      labels: int32 `[blocks, block]`.
      weights: float32 `[total]`.
      sizes: width of the input and of each layer, int64 `[layers + 1]`.
      starts: first branch of each layer, then the number of branches, int64 `[layers + 1]`.
      units: first unit of each layer, then the number of units, int64 `[layers + 1]`.
      samples: number of samples.
      num_kept: number of kept branches.
      logit_scale: factor on the logits, float32.
    """

    inputs: np.ndarray  # float32 [blocks, features, block]
    labels: np.ndarray  # int32 [blocks, block]
    weights: np.ndarray  # float32 [total]
    sizes: np.ndarray  # int64 [layers + 1]
    starts: np.ndarray  # int64 [layers + 1]
    units: np.ndarray  # int64 [layers + 1]
    samples: int
    num_kept: int
    logit_scale: np.float32


class Chain(NamedTuple):
    """The state of a chain, changed in place.

    Attributes:
      outputs: all units before their activation, float32 `[blocks, units, block]`; last, the logits.
      order: the kept branches, then the pruned ones, int32 `[total]`.
      targets: units of the next layer to which each unit's kept branches lead, int32 `[total - starts[1]]`; each
        unit uses the first entries of the part of its branches.
      slots: position of each kept branch in that part, int32 `[total - starts[1]]`.
      fan_out: number of each unit's kept branches, int32 `[units]`.
      energies: sum of the cross-entropies of each block's samples, float64 `[blocks]`.
      bits: state of the random numbers, uint64 `[1]`.
    """

    outputs: np.ndarray  # float32 [blocks, units, block]
    order: np.ndarray  # int32 [total]
    targets: np.ndarray  # int32 [total - starts[1]]
    slots: np.ndarray  # int32 [total - starts[1]]
    fan_out: np.ndarray  # int32 [units]
    energies: np.ndarray  # float64 [blocks]
    bits: np.ndarray  # uint64 [1]


class Scratch(NamedTuple):
    """What a proposal changes in one block, until it is accepted or rejected.

    Attributes:
      outputs: new rows of the touched units, float32 `[1, units, block]`.
      changes: changes of the units' activations, float32 `[1, units + 2, block]`; the last two rows are the inputs
        of the pruned and of the grown branch.
      changed: the units of a layer whose activation changes, int32 `[units]`.
      touched: the units whose row changes, int32 `[units]`.
      counts: number of rows that are added to each unit, int32 `[units]`.
      rows: rows of `changes` that are added to each unit, int32 `[widest, widest + 2]`.
      factors: factors of these rows, float32 `[widest, widest + 2]`.
      energies: as in `Chain`.
      softmax: largest logit, sum of exponentials and the label's logit of each sample, float32 `[3, block]`.
      products: float64 `[LANES]`.
    """

    outputs: np.ndarray  # float32 [1, units, block]
    changes: np.ndarray  # float32 [1, units + 2, block]
    changed: np.ndarray  # int32 [units]
    touched: np.ndarray  # int32 [units]
    counts: np.ndarray  # int32 [units]
    rows: np.ndarray  # int32 [widest, widest + 2]
    factors: np.ndarray  # float32 [widest, widest + 2]
    energies: np.ndarray  # float64 [blocks]
    softmax: np.ndarray  # float32 [3, block]
    products: np.ndarray  # float64 [LANES]


def prepare(
    network: Network, mask: np.ndarray, inputs: np.ndarray, labels: np.ndarray, logit_scale: float, seed: int
) -> tuple[Problem, Chain, Scratch]:
    """Evaluates a mask and returns the arguments of `walk`.

    Args:
      network: the fixed weights, with or without biases; the activation is relu.
      mask: flat, bool `[total]`.
      inputs: float32 `[features, samples]`.
      labels: int `[samples]`.
      logit_scale: factor on the logits in the cross-entropy.
      seed: seed of the random numbers.
    """
    sizes, samples, widest = network.sizes, inputs.shape[1], max(network.sizes[1:])
    weights = np.concatenate([np.ravel(kernel) for kernel in network.kernels])
    starts = np.cumsum([0, *(kernel.size for kernel in network.kernels)])
    units = np.cumsum([0, *sizes[1:]])
    blocks = -(-samples // MAX_BLOCK)
    block = -(-samples // (8 * blocks)) * 8
    problem = Problem(
        _in_blocks(inputs, blocks, block),
        _in_blocks(labels[None].astype(np.int32), blocks, block)[:, 0],
        weights,
        np.array(sizes),
        starts,
        units,
        samples,
        int(mask.sum()),
        np.float32(logit_scale),
    )
    later = len(weights) - starts[1]
    chain = Chain(
        _in_blocks(evaluate(network, mask, inputs), blocks, block),
        np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]).astype(np.int32),
        np.zeros(later, np.int32),
        np.zeros(later, np.int32),
        np.zeros(units[-1], np.int32),
        np.zeros(blocks),
        np.array([2 * seed + 1], np.uint64) * np.uint64(0x9E3779B97F4A7C15),
    )
    scratch = Scratch(
        np.zeros((1, units[-1], block), np.float32),
        np.zeros((1, units[-1] + 2, block), np.float32),
        np.zeros(units[-1], np.int32),
        np.zeros(units[-1], np.int32),
        np.zeros(units[-1], np.int32),
        np.zeros((widest, widest + 2), np.int32),
        np.zeros((widest, widest + 2), np.float32),
        np.zeros(blocks),
        np.zeros((3, block), np.float32),
        np.zeros(LANES),
    )
    _start(problem, chain, scratch)
    return problem, chain, scratch


def evaluate(network: Network, mask: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Returns the outputs of all units before their activation, float32 `[units, samples]`, fully evaluated."""
    outputs, entering, start = [], inputs, 0
    for weights, bias in zip(network.kernels, network.biases, strict=True):
        kernel = np.asarray(weights)
        layer_mask = mask[start : start + kernel.size].reshape(kernel.shape)
        start += kernel.size
        outputs.append(np.where(layer_mask, kernel, ZERO).T @ entering)
        if bias is not None:
            outputs[-1] += np.asarray(bias)[:, None]
        entering = np.maximum(outputs[-1], ZERO)
    return np.concatenate(outputs)


def _in_blocks(rows, blocks, block):
    padded = np.zeros((len(rows), blocks * block), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.reshape(len(rows), blocks, block).swapaxes(0, 1))


@njit(fastmath=True)
def walk(problem: Problem, chain: Chain, scratch: Scratch, temperature: float, num_steps: int) -> int:
    """Makes `num_steps` uniform swaps at one temperature above 0, in place; returns how many were accepted.

    The energy of the chain is then `chain.energies.sum() / samples`.
    """
    blocks, num_kept = chain.energies.size, problem.num_kept
    num_pruned = problem.weights.size - num_kept
    accepted = 0
    for _ in range(num_steps):
        kept_slot = _below(chain.bits, num_kept)
        pruned_slot = num_kept + _below(chain.bits, num_pruned)
        log_u = np.log((_below(chain.bits, 2**32) + 1) / 2.0**32)
        pruned, grown = chain.order[kept_slot], chain.order[pruned_slot]
        change, num_touched = 0.0, 0
        for block in range(blocks):
            _clear(scratch, num_touched)
            num_touched = _propagate(problem, chain, scratch, pruned, grown, block)
            scratch.energies[block] = chain.energies[block]
            if num_touched and scratch.touched[num_touched - 1] >= problem.units[-2]:
                scratch.energies[block] = _cross_entropy(problem, chain, scratch, block)
                change += scratch.energies[block] - chain.energies[block]
        if log_u <= -change / problem.samples / temperature:
            for block in range(blocks):
                if blocks > 1:  # with one block, its rows are still there
                    _clear(scratch, num_touched)
                    num_touched = _propagate(problem, chain, scratch, pruned, grown, block)
                for place in range(num_touched):
                    unit = scratch.touched[place]
                    _copy(chain.outputs, block, unit, scratch.outputs, 0, unit)
                chain.energies[block] = scratch.energies[block]
            chain.order[kept_slot], chain.order[pruned_slot] = grown, pruned
            _prune(problem, chain, pruned)
            _keep(problem, chain, grown)
            accepted += 1
        _clear(scratch, num_touched)
    return accepted


@njit
def _propagate(problem, chain, scratch, pruned, grown, block):
    """Fills a block's new rows of all units that the swap touches, and returns their number."""
    outputs, rows, factors = chain.outputs, scratch.rows, scratch.factors
    new, changes = scratch.outputs, scratch.changes
    counts, touched, changed = scratch.counts, scratch.touched, scratch.changed
    sizes, starts, units, weights = problem.sizes, problem.starts, problem.units, problem.weights
    ends = (_branch(sizes, starts, pruned), _branch(sizes, starts, grown))
    num_touched = num_changed = 0
    for layer in range(min(ends[0][0], ends[1][0]), len(sizes) - 1):
        first_touched = num_touched
        # First collect which rows are added to which units, then add unit by unit, so that each row is written
        # once.
        for index in range(num_changed):
            source = changed[index]
            start = starts[layer] + (source - units[layer - 1]) * sizes[layer + 1]
            for slot in range(start, start + chain.fan_out[source]):
                target = chain.targets[slot - starts[1]]
                if start + target != pruned:
                    unit = units[layer] + target
                    num_touched = _touch(touched, counts, num_touched, unit)
                    rows[target, counts[unit]] = source
                    factors[target, counts[unit]] = weights[start + target]
                    counts[unit] += 1
        for end in range(2):
            end_layer, source, target = ends[end]
            if end_layer == layer:
                # The pruned branch subtracts its old input; the grown branch adds its new input.
                row, unit = units[-1] + end, units[layer] + target
                if layer == 0:
                    _copy(changes, 0, row, problem.inputs, block, source)
                elif end and counts[units[layer - 1] + source]:
                    _relu(changes, row, new, 0, units[layer - 1] + source)
                else:
                    _relu(changes, row, outputs, block, units[layer - 1] + source)
                num_touched = _touch(touched, counts, num_touched, unit)
                rows[target, counts[unit]] = row
                factors[target, counts[unit]] = weights[grown] if end else -weights[pruned]
                counts[unit] += 1
        num_changed = 0
        for place in range(first_touched, num_touched):
            unit = touched[place]
            target = unit - units[layer]
            if counts[unit] < 4:
                _set_one(new, unit, outputs, block, factors, changes, rows, target)
                index = 1
            else:
                _set_four(new, unit, outputs, block, factors, changes, rows, target)
                index = 4
            while counts[unit] - index >= 4:
                _add_four(new, unit, factors, changes, rows, target, index)
                index += 4
            while index < counts[unit]:
                _add_one(new, unit, factors, changes, rows, target, index)
                index += 1
            if layer < len(sizes) - 2 and _relu_change(changes, new, outputs, block, unit) > ZERO:
                changed[num_changed] = unit
                num_changed += 1
    return num_touched


@njit
def _touch(touched, counts, num_touched, unit):
    if counts[unit]:
        return num_touched
    touched[num_touched] = unit
    return num_touched + 1


@njit
def _clear(scratch, num_touched):
    for place in range(num_touched):
        scratch.counts[scratch.touched[place]] = 0


@njit
def _cross_entropy(problem, chain, scratch, block):
    """Returns the sum of the samples' cross-entropies, with the new rows of the logits that are touched."""
    labels, scale, softmax, first = problem.labels, problem.logit_scale, scratch.softmax, problem.units[-2]
    old, new, counts = chain.outputs, scratch.outputs, scratch.counts
    _reset(softmax)
    for unit in range(first, problem.units[-1]):
        if counts[unit]:
            _raise_largest(softmax, new, 0, unit)
        else:
            _raise_largest(softmax, old, block, unit)
    for unit in range(first, problem.units[-1]):
        label = np.int32(unit - first)
        if counts[unit]:
            _add_exponentials(softmax, new, 0, unit, labels, block, label, scale)
        else:
            _add_exponentials(softmax, old, block, unit, labels, block, label, scale)
    size = min(softmax.shape[1], problem.samples - block * softmax.shape[1])
    return _sum_losses(softmax, scratch.products, size, scale)


# Each loop over a block is a function of its own, so that LLVM vectorises it. The functions take whole arrays and
# the number of a row, because a slice would cost as much as the loop.


@njit(fastmath=True, forceinline=True)
def _copy(copies, copies_block, copy, values, block, row):
    for k in range(values.shape[2]):
        copies[copies_block, copy, k] = values[block, row, k]


@njit(fastmath=True, forceinline=True)
def _relu(changes, change, values, block, row):
    for k in range(values.shape[2]):
        changes[0, change, k] = max(values[block, row, k], ZERO)


@njit(fastmath=True, forceinline=True)
def _relu_change(changes, new, old, block, row):
    size = ZERO
    for k in range(old.shape[2]):
        change = max(new[0, row, k], ZERO) - max(old[block, row, k], ZERO)
        changes[0, row, k] = change
        size += abs(change)
    return size


@njit(fastmath=True, forceinline=True)
def _set_one(new, unit, old, block, factors, changes, rows, target):
    a, u = rows[target, 0], factors[target, 0]
    for k in range(old.shape[2]):
        new[0, unit, k] = old[block, unit, k] + u * changes[0, a, k]


@njit(fastmath=True, forceinline=True)
def _set_four(new, unit, old, block, factors, changes, rows, target):
    a, b, c, d = rows[target, 0], rows[target, 1], rows[target, 2], rows[target, 3]
    u, v, w, x = factors[target, 0], factors[target, 1], factors[target, 2], factors[target, 3]
    for k in range(old.shape[2]):
        four = u * changes[0, a, k] + v * changes[0, b, k] + w * changes[0, c, k] + x * changes[0, d, k]
        new[0, unit, k] = old[block, unit, k] + four


@njit(fastmath=True, forceinline=True)
def _add_one(new, unit, factors, changes, rows, target, index):
    a, u = rows[target, index], factors[target, index]
    for k in range(new.shape[2]):
        new[0, unit, k] += u * changes[0, a, k]


@njit(fastmath=True, forceinline=True)
def _add_four(new, unit, factors, changes, rows, target, index):
    a, b, c, d = rows[target, index], rows[target, index + 1], rows[target, index + 2], rows[target, index + 3]
    u, v = factors[target, index], factors[target, index + 1]
    w, x = factors[target, index + 2], factors[target, index + 3]
    for k in range(new.shape[2]):
        four = u * changes[0, a, k] + v * changes[0, b, k] + w * changes[0, c, k] + x * changes[0, d, k]
        new[0, unit, k] += four


@njit(fastmath=True, forceinline=True)
def _reset(softmax):
    for k in range(softmax.shape[1]):
        softmax[0, k] = LEAST
        softmax[1, k] = softmax[2, k] = ZERO


@njit(fastmath=True, forceinline=True)
def _raise_largest(softmax, values, block, row):
    # A plain maximum would become a conditional store.
    for k in range(values.shape[2]):
        softmax[0, k] += max(values[block, row, k] - softmax[0, k], ZERO)


@njit(fastmath=True, forceinline=True)
def _add_exponentials(softmax, values, block, row, labels, labels_block, label, scale):
    for k in range(values.shape[2]):
        value = values[block, row, k]
        softmax[1, k] += _exp((value - softmax[0, k]) * scale)
        softmax[2, k] += value if labels[labels_block, k] == label else ZERO


@njit(fastmath=True, forceinline=True)
def _sum_losses(softmax, products, size, scale):
    products[:] = 1.0
    whole = size - size % LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            products[lane] *= softmax[1, start + lane]
    for lane in range(size - whole):
        products[lane] *= softmax[1, whole + lane]
    logarithms, differences = 0.0, ZERO
    for lane in range(LANES):
        logarithms += np.log(products[lane])
    for k in range(size):
        differences += softmax[0, k] - softmax[2, k]
    return logarithms + scale * differences


@njit(fastmath={"contract", "nnan", "ninf", "nsz"})
def _exp(x):
    """Returns `exp(x)` for float32 `x <= 0`, as the Cephes library does, with a relative error below 2e-7."""
    x = max(x, LOWEST)
    exponent = np.int32(x * LOG2_E - HALF)
    whole = np.float32(exponent)
    x = x - whole * LN2_HIGH - whole * LN2_LOW
    y = ((((P0 * x + P1) * x + P2) * x + P3) * x + P4) * x + P5
    y = y * (x * x) + x + ONE
    return y * np.int32((exponent + np.int32(127)) << np.int32(23)).view(np.float32)


@njit
def _below(bits, bound):
    """Returns a random whole number below `bound` (xorshift64*; Vigna 2016)."""
    x = bits[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    bits[0] = x
    return np.int64((((x * np.uint64(2685821657736338717)) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit
def _branch(sizes, starts, branch):
    """Returns the layer of a branch, and its source and target unit, counted within their layers."""
    layer = 0
    while branch >= starts[layer + 1]:
        layer += 1
    local = branch - starts[layer]
    return layer, local // sizes[layer + 1], local % sizes[layer + 1]


@njit
def _keep(problem, chain, branch):
    """Adds a branch to its unit's list."""
    layer, source, target = _branch(problem.sizes, problem.starts, branch)
    if layer:
        unit = problem.units[layer - 1] + source
        start = problem.starts[layer] + source * problem.sizes[layer + 1] - problem.starts[1]
        slot = chain.fan_out[unit]
        chain.targets[start + slot] = target
        chain.slots[start + target] = slot
        chain.fan_out[unit] = slot + 1


@njit
def _prune(problem, chain, branch):
    """Removes a branch from its unit's list; the last branch takes its place."""
    layer, source, target = _branch(problem.sizes, problem.starts, branch)
    if layer:
        unit = problem.units[layer - 1] + source
        start = problem.starts[layer] + source * problem.sizes[layer + 1] - problem.starts[1]
        slot, last = chain.slots[start + target], chain.fan_out[unit] - 1
        moved = chain.targets[start + last]
        chain.targets[start + slot] = moved
        chain.slots[start + moved] = slot
        chain.fan_out[unit] = last


@njit
def _start(problem, chain, scratch):
    for index in range(problem.num_kept):
        _keep(problem, chain, chain.order[index])
    for block in range(chain.energies.size):
        chain.energies[block] = _cross_entropy(problem, chain, scratch, block)
