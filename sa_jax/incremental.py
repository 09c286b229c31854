"""The landscape of a masked multilayer perceptron, where a swap costs what it touches.

Pre-activations of every layer are cached as `[units, samples]`, so that a unit's row is contiguous. A swap
in the first layer changes one or two rows of the first pre-activations, hence the second by a rank-one
update each; what follows is recomputed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax import masks
from sa_jax.energies import Energy
from sa_jax.landscape import from_energy
from sa_jax.models import ACTIVATIONS, Network, check_activation
from sa_jax.moves import Swap, Swaps, move_fn, swap_mask
from sa_jax.types import Landscape, PyTree


class MlpState(NamedTuple):
    """A mask and everything that depends on it.

    Attributes:
      position: flat mask, bool `[total]`.
      energy: float32 `[]`.
      swaps: state of the proposals, such as the index lists of kept and pruned branches.
      outputs: per layer, its outputs before the activation, float32 `[units, samples]`; last, the logits.
    """

    position: jax.Array
    energy: jax.Array
    swaps: PyTree
    outputs: tuple[jax.Array, ...]


class Pending(NamedTuple):
    """A proposal's consequences, up to its acceptance.

    Attributes:
      energy: float32 `[]`.
      units: units of the first layer whose inputs change, int32 `[2]`, perhaps the same twice.
      changes: what is added to their outputs, float32 `[2, samples]`.
      outputs: new outputs of all layers but the first, float32 `[units, samples]` each.
    """

    energy: jax.Array
    units: jax.Array
    changes: jax.Array
    outputs: tuple[jax.Array, ...]


class _Ends(NamedTuple):
    """The two ends of a swap seen from one layer, `[2]` each; weight 0 where a branch is in another layer."""

    unit_in: jax.Array
    unit_out: jax.Array
    weight: jax.Array


def masked_mlp(network: Network, swaps: Swaps, energy: Energy, activation: str = "relu") -> Landscape:
    """Makes the landscape of the masks of a fixed-weight multilayer perceptron.

    Positions are flat masks, bool `[total]` (see `masks`), and data is `(inputs, labels)` with inputs float32
    `[features, samples]`, features first, and labels int32 `[samples]`.

    Args:
      network: the fixed weights; any depth and widths, with or without biases.
      swaps: the proposals, `uniform_swap()` or `saliency_swap(...)`.
      energy: of the logits, such as `cross_entropy()`; called with `axis=0`.
      activation: 'relu', 'tanh' or 'gelu'.

    Returns:
      A `Landscape`, equal to `full_mlp` up to float rounding.

    Raises:
      InputError: an unknown activation.
    """
    check_activation(activation)
    act = ACTIVATIONS[activation]
    weights = masks.flatten(network.kernels)
    starts = [0]
    for inputs, outputs in network.shapes:
        starts.append(starts[-1] + inputs * outputs)

    def init(mask, data):
        mask = jnp.asarray(mask, bool)
        outputs, value = _evaluate(network, mask, data, energy, activation)
        return MlpState(mask, value, swaps.init(mask), outputs)

    def propose(noise, state, temperature):
        del temperature
        return swaps.propose(noise, state.swaps, state.position)

    def ends(swap: Swap, layer: int) -> _Ends:
        branches = jnp.stack([swap.pruned, swap.grown])
        here = (branches >= starts[layer]) & (branches < starts[layer + 1])
        local = jnp.where(here, branches - starts[layer], 0)
        width = network.shapes[layer][1]
        signed = jnp.array([-1, 1], weights.dtype) * weights[branches]
        return _Ends(local // width, local % width, jnp.where(here, signed, 0))

    def kept_weights(state, swap, start, size):
        # Weights of consecutive branches after the swap, 0 where pruned.
        branches = start + jnp.arange(size)
        kept = jax.lax.dynamic_slice(state.position, (start,), (size,))
        swapped = swap.pruned != swap.grown
        kept = (kept & ~(swapped & (branches == swap.pruned))) | (swapped & (branches == swap.grown))
        return jnp.where(kept, jax.lax.dynamic_slice(weights, (start,), (size,)), 0)

    def delta(state, swap, data):
        inputs, *targets = data
        first = state.outputs[0]
        units_in, units, signed = ends(swap, 0)
        changes = signed[:, None] * inputs[units_in]
        outputs = []
        for layer, (bias, shape) in enumerate(zip(network.biases, network.shapes, strict=True)):
            if layer == 0:
                value = _add_rows(first, units, changes)
            elif layer == 1:
                value = state.outputs[1]
                for unit, change in zip(units, _activation_changes(first, units, changes, act), strict=True):
                    fan_out = kept_weights(state, swap, starts[1] + unit * shape[1], shape[1])
                    value = value + fan_out[:, None] * change
                second = ends(swap, 1)
                value = _add_rows(value, second.unit_out, second.weight[:, None] * act(first[second.unit_in]))
            else:
                kernel = kept_weights(state, swap, starts[layer], shape[0] * shape[1]).reshape(shape)
                value = _dense(kernel, bias, act(outputs[-1]))
            outputs.append(value)
        value = energy(outputs[-1], *targets, axis=0)
        return value - state.energy, Pending(value, units, changes, tuple(outputs[1:]))

    def commit(state, swap, pending, accepted):
        first = _add_rows(state.outputs[0], pending.units, jnp.where(accepted, pending.changes, 0))
        later = jax.lax.cond(accepted, lambda: pending.outputs, lambda: state.outputs[1:])
        return MlpState(
            swap_mask(state.position, swap, accepted),
            jnp.where(accepted, pending.energy, state.energy),
            swaps.commit(state.swaps, swap, accepted),
            (first, *later),
        )

    def refresh(state, data):
        outputs, value = _evaluate(network, state.position, data, energy, activation)
        return state._replace(outputs=outputs, energy=value)

    return Landscape(init, swaps.draw, propose, delta, commit, refresh)


def full_mlp(network: Network, swaps: Swaps, energy: Energy, activation: str = "relu") -> Landscape:
    """Makes the same landscape by full evaluation, for comparison: arguments and data as for `masked_mlp`.

    Positions are `(mask, swaps.init(mask))`, so that a proposal does not rebuild the index lists.

    Raises:
      InputError: an unknown activation.
    """
    check_activation(activation)

    def energy_fn(position, *data):
        return _evaluate(network, position[0], data, energy, activation)[1]

    return from_energy(energy_fn, move_fn(swaps))


def _evaluate(network, mask, data, energy, activation):
    inputs, *targets = data
    outputs, entering = [], inputs
    kernel_masks = masks.unflatten(mask, network.shapes)
    for kernel, kept, bias in zip(network.kernels, kernel_masks, network.biases, strict=True):
        outputs.append(_dense(jnp.where(kept, kernel, 0), bias, entering))
        entering = ACTIVATIONS[activation](outputs[-1])
    return tuple(outputs), energy(outputs[-1], *targets, axis=0)


def _dense(kernel, bias, entering):
    # Transposed beforehand the product is a third faster on a CPU; without the barrier XLA undoes that.
    value = jax.lax.optimization_barrier(kernel.T) @ entering
    return value if bias is None else value + bias[:, None]


def _add_rows(value, rows, changes):
    # One after the other, since both may be the same row.
    return value.at[rows[0]].add(changes[0]).at[rows[1]].add(changes[1])


def _activation_changes(outputs, units, changes, act):
    # When both ends lie in one unit its whole change counts once, as the first.
    same = units[0] == units[1]
    old = outputs[units]
    first = act(old[0] + changes[0] + jnp.where(same, changes[1], 0)) - act(old[0])
    second = jnp.where(same, 0, act(old[1] + changes[1]) - act(old[1]))
    return first, second
