"""What a swap changes in one block of samples, from the first convolution that changes to the logits."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.cnn.state import Changed, CnnCache, CnnLayout, Few, Weights, Whole
from sa_jax.landscapes.mlp.ends import ends, kept_weights
from sa_jax.landscapes.mlp.layout import weight_of
from sa_jax.landscapes.mlp.loops import cut, dense, zero_like
from sa_jax.landscapes.mlp.state import Block
from sa_jax.moves.base import Swap
from sa_jax.networks.cnn import activate, convolve, flattened, patches, strided

# Number of values of one array that are processed at once, so that they stay in the CPU cache. It does not change
# the results.
BLOCK_VALUES = 2**18


def only_if(needed: jax.Array, compute: Callable[[], jax.Array], otherwise: jax.Array) -> jax.Array:
    """Returns `compute()` if needed, bool `[]`, else `otherwise`, of the same shape.

    It is computed only if a chain needs it.
    """
    value = jax.lax.cond(batch_bound(needed.astype(jnp.int32)) > 0, compute, lambda: otherwise)
    return jnp.where(needed, value, otherwise)


def kinds_of(layout: CnnLayout, first: int) -> list[str]:
    """Returns how the layers from the convolution `first` to the first dense layer change.

    'few' changes one channel for each branch of the swap; 'spread' adds the changes of few input channels to all
    outputs; 'whole' is evaluated in full.
    """
    kinds = ["few"]
    for stage in layout.stages[first + 1 :]:
        spreads = "spread" if stage.layer.groups == 1 else "whole"
        kinds.append("whole" if kinds[-1] != "few" else "few" if stage.depthwise else spreads)
    return [*kinds, "spread" if kinds[-1] == "few" else "whole"]


def block_samples(layout: CnnLayout, first: int) -> int:
    """Returns the number of samples that are processed at once.

    Args:
      layout: fixed part of the landscape.
      first: the first convolution that changes; -1 if all is evaluated in full.
    """
    most = 1
    kinds = ["whole"] * layout.num_stages if first < 0 else kinds_of(layout, first)
    for stage, kind in zip(layout.stages[max(first, 0) :], kinds, strict=False):
        positions, taps = math.prod(stage.outputs[:2]), math.prod(stage.layer.window)
        rows = {"few": 1, "spread": max(taps, stage.layer.outputs), "whole": taps * stage.inputs[2]}[kind]
        most = max(most, positions * rows)
    return max(BLOCK_VALUES // most, 1)


def weights_after(
    layout: CnnLayout, position: jax.Array, after: Swap | None, swap: Swap, first: int, index: jax.Array | int
) -> Weights:
    """Collects the weights that are needed to evaluate a swap.

    Args:
      layout: fixed part of the landscape.
      position: flat mask, bool `[total]`, before `after`.
      after: the swap while it is proposed; None once it is accepted.
      swap: the swap.
      first: the first convolution that changes.
      index: index of the surrounding loop, always 0. The weights depend on it. Otherwise XLA would move them out
        of the loop, and would compute them even if the loop does not run.
    """
    channels = jnp.zeros(2, jnp.int32)
    for number in range(first, layout.num_stages):
        end = ends(layout.whole, swap, number)
        channels += jnp.where(end.here, end.unit_out, 0)
    weights: dict[int, jax.Array] = {}
    for number, kind in enumerate(kinds_of(layout, first)[1:], first + 1):
        rows, outputs = layout.whole.shapes[number]
        if number < layout.num_stages:
            stage = layout.stages[number]
            per_group, taps = stage.kernel_shape[2], math.prod(stage.layer.window)
        else:
            per_group, taps = layout.stages[-1].layer.outputs, math.prod(layout.stages[-1].pooled[:2])
        if kind == "few":
            local = jnp.arange(taps)[None] * outputs + channels[:, None]
        elif kind == "spread":
            entered = jnp.arange(taps)[None] * per_group + channels[:, None]
            local = entered[:, :, None] * outputs + jnp.arange(outputs)[None, None]
        else:
            local = jnp.arange(rows * outputs).reshape(rows, outputs)
        weights[number] = kept_weights(layout.whole, position, after, number, index + local)
    for number in range(layout.num_stages + 1, layout.whole.head + 1):
        rows, outputs = layout.whole.shapes[number]
        local = jnp.arange(rows * outputs).reshape(rows, outputs)
        weights[number] = kept_weights(layout.whole, position, after, number, index + local)
    return Weights(channels, weights)


def changed_block(
    layout: CnnLayout, cache: CnnCache, swap: Swap, weights: Weights, first: int, block: Block
) -> Changed:
    """Returns what a swap changes in one block of samples, if its first change is in the convolution `first`."""
    changed: list[Few | Whole] = []
    for number, kind in enumerate(kinds_of(layout, first)[:-1], first):
        stage, before = layout.stages[number], changed[-1] if changed else None
        if kind == "few":
            changed.append(_few(layout, cache, swap, weights, number, before, block))
            continue
        if kind == "spread":
            outputs = _spread(layout, cache, swap, weights, number, before, block)
        else:
            entering = _entering(layout, cache, number, before, weights.channels, block)
            bias = layout.whole.network.biases[number]
            outputs = convolve(stage, weights.later[number], bias, entering)
        changed.append(Whole(outputs, activate(stage, outputs)))
    return Changed(changed, _dense_outputs(layout, cache, swap, weights, changed[-1], block))


def _few(layout, cache, swap, weights, number, before, block):
    """Returns the changed channels of a convolution of which at most two change."""
    stage, end, channels = layout.stages[number], ends(layout.whole, swap, number), weights.channels
    height, width, _ = stage.outputs
    zeros = jnp.full((1, height, width, block.size), zero_like(cache.features))
    changes = [
        only_if(end.here[j], partial(_shifted, layout, cache, swap, number, j, block), zeros) for j in (0, 1)
    ]
    active = end.here
    if before is not None:
        taps = weights.later[number]
        arrived = [partial(_through, stage, taps[j], before.change[j]) for j in (0, 1)]
        changes = [only_if(before.active[j], arrived[j], changes[j]) for j in (0, 1)]
        active = active | before.active
    # If both branches change the same channel, the first slot holds the change.
    one_channel = active.all() & (channels[0] == channels[1])
    changes[0] = only_if(one_channel, lambda: changes[0] + changes[1], changes[0])
    active = active & ~(one_channel & jnp.array([False, True]))
    outputs, pooled, change = [], [], []
    for j in (0, 1):
        old = cut(cache.outputs[number], (channels[j], 0, 0, block.start), zeros.shape)
        outputs.append(old + changes[j])
        was = _pooled_channel(layout, cache, number, channels[j], block)
        pooled.append(only_if(active[j], lambda now=outputs[j]: activate(stage, now), jnp.zeros_like(was)))
        change.append(jnp.where(active[j], pooled[j] - was, 0))
    return Few(active, outputs, pooled, change)


def _shifted(layout, cache, swap, number, which, block):
    """Returns the change that a branch of a swap causes in the channel it enters, `[1, height, width, block]`."""
    stage, end = layout.stages[number], ends(layout.whole, swap, number)
    inputs, outputs = stage.kernel_shape[2:]
    row, channel = end.unit_in[which], end.unit_out[which]
    tap, source = row // inputs, channel // (outputs // stage.layer.groups) * inputs + row % inputs
    height, width, _ = stage.inputs
    values = cut(cache.entering[number], (source, 0, 0, block.start), (1, height, width, block.size))
    padded = jnp.pad(values, ((0, 0), *stage.padding, (0, 0)))
    columns = stage.layer.window[1]
    weight = weight_of(layout.whole, None, number, row * outputs + channel)
    return (weight if which else -weight) * strided(stage, padded, tap // columns, tap % columns)


def _through(stage, kernel, change):
    """Returns the change of one channel by a depthwise convolution with the taps `kernel`, `[taps]`."""
    height, width, _ = stage.outputs
    return (kernel @ patches(stage, change)).reshape(1, height, width, -1)


def _spread(layout, cache, swap, weights, number, before, block):
    """Returns all outputs of a convolution of which few inputs change, `[channels, height, width, block]`."""
    kernel, stage = weights.later[number], layout.stages[number]
    end = ends(layout.whole, swap, number)
    outputs = cut(cache.outputs[number], (0, 0, 0, block.start), (*cache.outputs[number].shape[:3], block.size))

    def with_channel(j, outputs):
        return outputs + (kernel[j].T @ patches(stage, before.change[j])).reshape(outputs.shape)

    def with_end(j, outputs):
        return outputs.at[end.unit_out[j]].add(_shifted(layout, cache, swap, number, j, block)[0])

    for j in (0, 1):
        outputs = only_if(before.active[j], partial(with_channel, j, outputs), outputs)
        outputs = only_if(end.here[j], partial(with_end, j, outputs), outputs)
    return outputs


def _entering(layout, cache, number, before, channels, block):
    """Returns all inputs of a convolution after a swap, `[channels, height, width, block]`."""
    if isinstance(before, Whole):
        return before.pooled
    entering = cache.entering[number]
    values = cut(entering, (0, 0, 0, block.start), (*entering.shape[:3], block.size))
    for j in (0, 1):
        values = values.at[channels[j]].add(before.change[j][0])
    return values


def _dense_outputs(layout, cache, swap, weights, last, block):
    """Returns the outputs of all dense layers after a swap, `[units, block]` each."""
    first, *later = (weights.later[number] for number in range(layout.num_stages, layout.whole.head + 1))
    if isinstance(last, Whole):
        outputs = dense(first, layout.tail.network.biases[0], flattened(last.pooled))
        return [outputs, *later_outputs(layout, later, outputs)]
    units = layout.tail.shapes[0][1]
    outputs = cut(cache.dense.outputs[0], (0, block.start), (units, block.size))
    end = ends(layout.tail, swap, 0)

    def with_channel(j, outputs):
        return outputs + dense(first[j], None, last.change[j].reshape(-1, block.size))

    for j in (0, 1):
        outputs = only_if(last.active[j], partial(with_channel, j, outputs), outputs)
        row = cut(flat(cache.features), (end.unit_in[j], block.start), (1, block.size))[0]
        weight = weight_of(layout.tail, None, 0, end.unit_in[j] * units + end.unit_out[j])
        outputs = outputs.at[end.unit_out[j]].add(jnp.where(end.here[j], weight if j else -weight, 0) * row)
    return [outputs, *later_outputs(layout, later, outputs)]


def later_outputs(layout: CnnLayout, kernels: list[jax.Array], outputs: jax.Array) -> list[jax.Array]:
    """Returns the outputs of the dense layers after the first, float32 `[units, block]` each.

    Args:
      layout: fixed part of the landscape.
      kernels: their kernels, with zeros for pruned branches, float32 `[inputs, units]` each.
      outputs: outputs of the first, float32 `[units, block]`.
    """
    found = []
    for kernel, bias in zip(kernels, layout.tail.network.biases[1:], strict=True):
        outputs = dense(kernel, bias, layout.tail.act(outputs))
        found.append(outputs)
    return found


def _pooled_channel(layout, cache, number, channel, block):
    """Returns a channel after activation and pooling, float32 `[1, height, width, block]`, from the cache."""
    height, width, _ = layout.stages[number].pooled
    if number < layout.num_stages - 1:
        return cut(cache.entering[number + 1], (channel, 0, 0, block.start), (1, height, width, block.size))
    return cut(cache.features, (0, 0, channel, block.start), (height, width, 1, block.size)).transpose(2, 0, 1, 3)


def flat(features: jax.Array) -> jax.Array:
    """Returns the inputs of the first dense layer, float32 `[features, samples]`, from those of the cache."""
    return features.reshape(-1, features.shape[-1])
