"""Full evaluation: the state of a position, and what derivatives of the energy say of each branch."""

import jax
import jax.numpy as jnp

from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.loops import blocks, cut, product, update, zero_like
from sa_jax.landscapes.mlp.neighbours import neighbours_of
from sa_jax.landscapes.mlp.state import MlpCache, MlpState, Weighted
from sa_jax.moves.base import Estimates
from sa_jax.networks import masks
from sa_jax.types import PyTree

# Samples worked on at once, which bounds the need of memory. It changes nothing of what is computed.
EVALUATED_SAMPLES = 256
# Swaps are noted, to be made in the best mask too, one for so many branches; after more of them it is copied.
BRANCHES_PER_NOTE = 4096


def init(layout: Layout, position: PyTree, data: tuple) -> MlpState:
    """The state of a position, by full evaluation."""
    shapes, head = layout.shapes, layout.head
    mask = jnp.asarray(mask_of(layout, position), bool)
    weighted = layout.moves_weights
    position = Weighted(mask, jnp.asarray(position.weights, jnp.float32)) if weighted else mask
    outputs, value = evaluate(layout, position, data)
    fan_in = tuple(map(neighbours_of, masks.unflatten(mask, shapes)[2:head]))
    # One row more than units: see `loops.each`.
    sizes = [(shapes[layer][1] + 1, data[0].shape[1]) for layer in range(1, head) if head > 2]
    scratch = tuple(jnp.full(size, zero_like(mask, data[0])) for size in sizes)
    notes = jnp.zeros((-(-mask.size // BRANCHES_PER_NOTE), 2), jnp.int32)
    drawn = _informed(layout, layout.swaps.init(mask), position, outputs, data)
    return MlpState(position, value, drawn, fan_in, MlpCache(outputs, scratch, notes, jnp.int32(0)))


def refresh(layout: Layout, state: MlpState, data: tuple) -> MlpState:
    """The state evaluated anew from its position, which ends float drift."""
    outputs, value = evaluate(layout, state.position, data, state.cache.outputs)
    drawn = _informed(layout, state.swaps, state.position, outputs, data)
    # The next best position is copied whole: so nothing of the notes need be in a checkpoint.
    overfull = jnp.full_like(state.cache.num_notes, len(state.cache.notes) + 1)
    return state._replace(energy=value, swaps=drawn).with_cache(outputs=outputs, num_notes=overfull)


def evaluate(
    layout: Layout, position: PyTree, data: tuple, outputs: tuple[jax.Array, ...] | None = None
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The outputs of all layers, float32 `[units, samples]` each, and the energy, float32 `[]`.

    Layer by layer and block by block, into the old outputs: beside them little memory is needed.
    """
    shapes, network = layout.shapes, layout.network
    inputs, *targets = data
    mask, samples = mask_of(layout, position), inputs.shape[1]
    number, size = blocks(samples, EVALUATED_SAMPLES)
    if outputs is None:
        zero = zero_like(*jax.tree.leaves(position), inputs)
        outputs = tuple([jnp.full((width, samples), zero) for _, width in shapes])
    entering, evaluated = inputs, []
    kernel_masks = masks.unflatten(mask, shapes)
    kernels = masks.unflatten(position.weights, shapes) if layout.moves_weights else network.kernels
    for layer, (kept, kernel, old) in enumerate(zip(kernel_masks, kernels, outputs, strict=True)):
        # One layer's weights at a time: XLA would mask those of all layers first.
        kept, entering = jax.lax.optimization_barrier((kept, entering))
        kernel = jnp.where(kept, kernel, 0)

        def one_block(i, values, layer=layer, kernel=kernel, entering=entering):
            start = jnp.minimum(i * size, samples - size)
            part = cut(entering, (0, start), (entering.shape[0], size))
            value = product(kernel.T, network.biases[layer], layout.act(part) if layer else part)
            return update(values, value, (0, start))

        evaluated.append(jax.lax.fori_loop(0, number, one_block, old))
        entering = evaluated[-1]
    return tuple(evaluated), layout.energy(evaluated[-1], *targets, axis=0)


def _informed(layout: Layout, swaps_state: PyTree, position: PyTree, outputs: tuple, data: tuple) -> PyTree:
    if layout.swaps.refresh is None:
        return swaps_state
    estimated = estimates(layout, position, outputs, data)
    return layout.swaps.refresh(swaps_state, mask_of(layout, position), estimated)


def estimates(layout: Layout, position: PyTree, outputs: tuple[jax.Array, ...], data: tuple) -> Estimates:
    """Returns the `Estimates` at a position, float32 `[total]` each.

    Effects to second order in the branch's weight, with the mean square of the first derivatives, sample by
    sample, for the second one (the empirical Fisher information): large weights are no small change.
    """
    shapes, (inputs, *targets) = layout.shapes, data
    samples = inputs.shape[1]
    by_logits = samples * jax.grad(lambda logits: layout.energy(logits, *targets, axis=0))(outputs[-1])
    kernel_masks = masks.unflatten(mask_of(layout, position), shapes)
    weighted = layout.moves_weights
    kernels = masks.unflatten(position.weights, shapes) if weighted else layout.network.kernels
    kept = [jnp.where(mask, kernel, 0) for mask, kernel in zip(kernel_masks, kernels, strict=True)]
    zero = zero_like(*jax.tree.leaves(position), inputs)
    sums = _derivative_sums(layout, kept, [inputs, *outputs[:-1]], by_logits, zero)
    slopes, curvatures = (masks.flatten([of_layer[i] for of_layer in sums]) / samples for i in range(2))
    weights, mask = masks.flatten(kernels), mask_of(layout, position)
    effects = weights * slopes + jnp.where(mask, -0.5, 0.5) * weights**2 * curvatures
    # A pruned branch acts as a weight of 0 would, and comes back with the weight it has.
    return Estimates(effects, slopes + jnp.where(mask, 0, weights * curvatures), curvatures)


def _derivative_sums(
    layout: Layout, kept: list[jax.Array], entering: list[jax.Array], by_logits: jax.Array, zero: jax.Array
) -> list[tuple[jax.Array, jax.Array]]:
    """By layer, the first derivatives of the energy by each weight and their squares, summed over samples.

    Args:
      layout: what stays the same.
      kept: kernels with zeros where pruned, float32 `[inputs, outputs]`.
      entering: inputs, and outputs of the hidden layers before the activation, float32 `[units, samples]`.
      by_logits: derivatives of each sample's energy, float32 `[classes, samples]`.
      zero: what sums begin with, float32 `[]`.
    """
    act, samples = layout.act, by_logits.shape[1]
    number, size = blocks(samples, EVALUATED_SAMPLES)

    def one_block(i, sums):
        start = jnp.minimum(i * size, samples - size)
        # The last block may overlap the one before, whose samples must not count twice.
        fresh = start + jnp.arange(size) >= i * size
        parts = [cut(array, (0, start), (array.shape[0], size)) for array in entering]
        signal = jnp.where(fresh, cut(by_logits, (0, start), (by_logits.shape[0], size)), 0)
        new = list(sums)
        for layer in reversed(range(len(layout.shapes))):
            active = act(parts[layer]) if layer else parts[layer]
            first, second = sums[layer]
            new[layer] = first + active @ signal.T, second + (active**2) @ (signal**2).T
            if layer:
                signal = jax.vjp(act, parts[layer])[1](kept[layer] @ signal)[0]
        return new

    nothing = [(jnp.full(shape, zero), jnp.full(shape, zero)) for shape in layout.shapes]
    return jax.lax.fori_loop(0, number, one_block, nothing)
