"""Full evaluation of a position: its state, and estimates for each branch from derivatives of the energy."""

import jax
import jax.numpy as jnp

from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.loops import blocks, cut, product, update, zero_like
from sa_jax.landscapes.mlp.neighbours import neighbours_of
from sa_jax.landscapes.mlp.state import MlpCache, MlpState, Weighted
from sa_jax.moves.base import Estimates
from sa_jax.networks import masks
from sa_jax.types import PyTree

# Number of samples evaluated at once. It limits the memory, and does not change the results.
EVALUATED_SAMPLES = 256
# Accepted swaps are noted, and a new best position is made from the old one by repeating them. There is space for
# one note per so many branches. After more swaps the position is copied instead.
BRANCHES_PER_NOTE = 4096


def init(layout: Layout, position: PyTree, data: tuple) -> MlpState:
    """Returns the state of a position, by full evaluation."""
    shapes, head = layout.shapes, layout.head
    mask = jnp.asarray(mask_of(layout, position), bool)
    weighted = layout.moves_weights
    position = Weighted(mask, jnp.asarray(position.weights, jnp.float32)) if weighted else mask
    outputs, value = evaluate(layout, position, data)
    fan_in = tuple(map(neighbours_of, masks.unflatten(mask, shapes)[2:head]))
    # The scratch has one row more than there are units; see `loops.each`.
    sizes = [(shapes[layer][1] + 1, data[0].shape[1]) for layer in range(1, head) if head > 2]
    scratch = tuple(jnp.full(size, zero_like(mask, data[0])) for size in sizes)
    notes = jnp.zeros((-(-mask.size // BRANCHES_PER_NOTE), 2), jnp.int32)
    drawn = _informed(layout, layout.swaps.init(mask), position, outputs, data)
    return MlpState(position, value, drawn, fan_in, MlpCache(outputs, scratch, notes, jnp.int32(0)))


def refresh(layout: Layout, state: MlpState, data: tuple) -> MlpState:
    """Returns the state computed again from its position, which removes rounding errors that have added up."""
    outputs, value = evaluate(layout, state.position, data, state.cache.outputs)
    drawn = _informed(layout, state.swaps, state.position, outputs, data)
    # The next best position is copied, so that a checkpoint does not need the notes.
    overfull = jnp.full_like(state.cache.num_notes, len(state.cache.notes) + 1)
    return state._replace(energy=value, swaps=drawn).with_cache(outputs=outputs, num_notes=overfull)


def evaluate(
    layout: Layout, position: PyTree, data: tuple, outputs: tuple[jax.Array, ...] | None = None
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Returns the outputs of all layers, float32 `[units, samples]` each, and the energy, float32 `[]`.

    The function works layer by layer and block by block, and writes into the old outputs. It therefore needs
    little additional memory.
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
        # The barrier makes XLA mask one layer's weights at a time. Without it, XLA would first mask the weights of
        # all layers.
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

    The effects are of second order in the branch's weight, because removing a large weight is not a small change.
    The second derivative is estimated by the mean square of the first derivatives of the samples (the empirical
    Fisher information).
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
    # A pruned branch acts like a weight of 0. When it is kept again, it has its own weight again.
    return Estimates(effects, slopes + jnp.where(mask, 0, weights * curvatures), curvatures)


def _derivative_sums(
    layout: Layout, kept: list[jax.Array], entering: list[jax.Array], by_logits: jax.Array, zero: jax.Array
) -> list[tuple[jax.Array, jax.Array]]:
    """Returns the derivatives with respect to the weights and their squares, each summed over samples, per layer.

    Args:
      layout: fixed part of the landscape.
      kept: kernels with zeros for the pruned branches, float32 `[inputs, outputs]` each.
      entering: network inputs, and outputs of the hidden layers before the activation, float32 `[units, samples]`.
      by_logits: derivatives of each sample's energy with respect to the logits, float32 `[classes, samples]`.
      zero: initial value of the sums, float32 `[]`; see `loops.zero_like`.
    """
    act, samples = layout.act, by_logits.shape[1]
    number, size = blocks(samples, EVALUATED_SAMPLES)

    def one_block(i, sums):
        start = jnp.minimum(i * size, samples - size)
        # The last block may overlap the previous block. The samples in both blocks must not count twice.
        fresh = (start + jnp.arange(size) >= i * size)[None]
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
