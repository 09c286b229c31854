"""Full evaluation of a position: its state, its outputs and its energy."""

import jax
import jax.numpy as jnp

from sa_jax.landscapes.mlp.estimates import EVALUATED_SAMPLES, estimates
from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.loops import blocks, cut, product, update, zero_like
from sa_jax.landscapes.mlp.neighbours import neighbours_of
from sa_jax.landscapes.mlp.state import MlpCache, MlpState, Weighted
from sa_jax.networks import masks
from sa_jax.types import PyTree

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
