"""The landscape of a masked convolutional network: its functions, assembled.

The outputs of every convolution before its activation are cached as `[channels, height, width, samples]`, and so
is what follows its activation and pooling. A branch of a kernel connects one input channel with one output channel
by one tap. Pruning it changes this output channel by the shifted input channel times the weight. A change stays in
one channel through depthwise convolutions. The next other convolution, or the first dense layer, sums it into all
its outputs, by a product with the part of the kernel that the channel enters. All later layers are evaluated in
full. There is one program for each convolution in which the first change of a swap may lie. A swap of two branches
of dense layers is evaluated by the landscape of a multilayer perceptron, whose inputs are the flattened outputs of
the convolutions (`sa_jax.landscapes.mlp`).

A proposal keeps nothing but its logits. If it is accepted, its changes are computed again and written. Few
proposals are accepted, and so nothing large is carried from one function to the other.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.cnn.changes import (
    block_samples,
    changed_block,
    flat,
    later_outputs,
    only_if,
    weights_after,
)
from sa_jax.landscapes.cnn.state import Changed, CnnCache, CnnLayout, CnnPending, CnnState, Few, Whole
from sa_jax.landscapes.mlp import commit as mlp_commit
from sa_jax.landscapes.mlp import landscape as mlp_landscape
from sa_jax.landscapes.mlp.evaluation import BRANCHES_PER_NOTE
from sa_jax.landscapes.mlp.layout import layout_of
from sa_jax.landscapes.mlp.loops import blocks, cut, dense, update, zero_like
from sa_jax.landscapes.mlp.neighbours import neighbours_of
from sa_jax.landscapes.mlp.state import Block, MlpCache
from sa_jax.moves.base import Swap, SwapProposal
from sa_jax.networks import masks
from sa_jax.networks.cnn import ConvNetwork, activate, check_conv_network, convolve, flattened, stages_of
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError, Landscape, PyTree


def masked_cnn(network: ConvNetwork, swaps: SwapProposal, energy: Energy) -> Landscape:
    """Makes the landscape of the masks of a convolutional network.

    Positions are flat masks, bool `[total]`, see `sa_jax.networks.cnn`. Data is `(inputs, labels)` with inputs
    float32 `[channels, height, width, samples]`, from `sa_jax.networks.cnn.samples_last`, and labels int32
    `[samples]`.

    Args:
      network: the weights.
      swaps: the proposals, such as `uniform_swap()`.
      energy: energy of the logits, such as `cross_entropy()`; called with `axis=0`.

    Returns:
      A `Landscape`. It equals full evaluation up to float rounding.

    Raises:
      InputError: the network does not fit its architecture, or the proposals use estimates of the energy or change
        weights.
    """
    check_conv_network(network)
    if swaps.refresh is not None:
        raise InputError(
            "proposals that use estimates or change weights need masked_mlp: use uniform_swap() or saliency_swap()"
        )
    layout = cnn_layout(network, swaps, energy)
    return Landscape(
        init=partial(init, layout),
        draw=swaps.draw,
        propose=partial(propose, layout),
        delta=partial(delta, layout),
        commit=partial(commit, layout),
        refresh=partial(refresh, layout),
        remember=remember,
    )


def cnn_layout(network: ConvNetwork, swaps: SwapProposal, energy: Energy) -> CnnLayout:
    """Makes the fixed part of a landscape; arguments as in `masked_cnn`."""
    architecture, stages = network.architecture, stages_of(network.architecture)
    pairs = zip(network.kernels, network.shapes, strict=True)
    matrices = tuple(kernel.reshape(shape) for kernel, shape in pairs)
    whole = layout_of(Network(matrices, network.biases), swaps, energy, architecture.activation)
    dense_layers = Network(matrices[len(stages) :], network.biases[len(stages) :])
    tail = layout_of(dense_layers, swaps, energy, architecture.activation)
    return CnnLayout(stages, whole, tail._replace(starts=whole.starts[len(stages) :]))


def init(layout: CnnLayout, position: PyTree, data: tuple) -> CnnState:
    """Returns the state of a position, by full evaluation."""
    mask, tail = jnp.asarray(position, bool), layout.tail
    zero = zero_like(mask, data[0])
    samples = data[0].shape[-1]

    def space(*sizes):
        return jnp.full((*sizes, samples), zero)

    channels = [(stage.layer.outputs, *stage.outputs[:2]) for stage in layout.stages]
    entering = [(stage.inputs[2], *stage.inputs[:2]) for stage in layout.stages]
    widths = [outputs for _, outputs in tail.shapes]
    scratch = [space(tail.shapes[layer][1] + 1) for layer in range(1, tail.head) if tail.head > 2]
    notes = jnp.zeros((-(-mask.size // BRANCHES_PER_NOTE), 2), jnp.int32)
    empty = CnnCache(
        tuple(space(*sizes) for sizes in channels),
        tuple(space(*sizes) for sizes in entering),
        space(*layout.stages[-1].pooled),
        MlpCache(tuple(space(width) for width in widths), tuple(scratch), notes, jnp.int32(0)),
    )
    cache, value = evaluate(layout, mask, data, empty)
    kernels = masks.unflatten(mask, layout.whole.shapes)[layout.num_stages :]
    fan_in = tuple(map(neighbours_of, kernels[2 : tail.head]))
    return CnnState(mask, value, tail.swaps.init(mask), fan_in, cache)


def refresh(layout: CnnLayout, state: CnnState, data: tuple) -> CnnState:
    """Returns the state computed again from its position, which removes rounding errors that have added up."""
    cache, value = evaluate(layout, state.position, data, state.cache)
    # The next best position is copied, so that a checkpoint does not need the notes.
    overfull = jnp.full_like(cache.dense.num_notes, len(cache.dense.notes) + 1)
    cache = cache._replace(dense=cache.dense._replace(num_notes=overfull))
    return state._replace(energy=value, cache=cache)


def evaluate(layout: CnnLayout, mask: jax.Array, data: tuple, cache: CnnCache) -> tuple[CnnCache, jax.Array]:
    """Returns the cache of a mask, bool `[total]`, written into the given one, and the energy, float32 `[]`."""
    inputs, *targets = data
    samples, whole = inputs.shape[-1], layout.whole
    kernels = [
        jnp.where(kept, kernel, 0)
        for kept, kernel in zip(masks.unflatten(mask, whole.shapes), whole.network.kernels, strict=True)
    ]
    number, size = blocks(samples, block_samples(layout, -1))

    def one_block(i, cache):
        block = Block(jnp.minimum(i * size, samples - size), size)
        values, convolutions = cut(inputs, (0, 0, 0, block.start), (*inputs.shape[:3], size)), []
        for stage, kernel, bias in zip(layout.stages, kernels, whole.network.biases, strict=False):
            outputs = convolve(stage, kernel, bias, values)
            values = activate(stage, outputs)
            convolutions.append(Whole(outputs, values))
        outputs = [dense(kernels[layout.num_stages], whole.network.biases[layout.num_stages], flattened(values))]
        changed = Changed(
            convolutions, outputs + later_outputs(layout, kernels[layout.num_stages + 1 :], outputs[0])
        )
        cache = with_whole(layout, cache, changed, 0, block, jnp.asarray(True))
        logits = update(cache.dense.outputs[-1], changed.dense[-1], (0, block.start))
        return with_dense(cache, [*cache.dense.outputs[:-1], logits])

    cache = cache._replace(entering=(inputs, *cache.entering[1:]))
    cache = jax.lax.fori_loop(0, number, one_block, cache)
    return cache, whole.energy(cache.dense.outputs[-1], *targets, axis=0)


def propose(
    layout: CnnLayout, noise: jax.Array, state: CnnState, temperature: jax.Array
) -> tuple[Swap, jax.Array]:
    """Returns a swap and its log proposal ratio, float32 `[]`."""
    return mlp_landscape.propose(layout.tail, noise, state.tail, temperature)


def delta(layout: CnnLayout, state: CnnState, swap: Swap, data: tuple) -> tuple[jax.Array, CnnPending]:
    """Evaluates a swap.

    Returns:
      The change of the energy, float32 `[]`, and the values that `commit` reuses.
    """
    _, *targets = data
    first = first_convolution(layout, swap)
    none = first == layout.num_stages
    # With a change in a convolution, the dense layers see a proposal to stay in place.
    seen = swap._replace(grown=jnp.where(none, swap.grown, swap.pruned))
    features = flat(state.cache.features)
    change, pending = mlp_landscape.delta(layout.tail, state.tail, seen, (features, *targets))
    logits = pending.logits
    for number in range(layout.num_stages):
        logits = only_if(first == number, partial(changed_logits, layout, state, swap, number), logits)
    energy = only_if(~none, lambda: layout.whole.energy(logits, *targets, axis=0), pending.energy)
    change = jnp.where(none, change, energy - state.energy)
    return change, CnnPending(first, pending._replace(energy=energy, logits=logits))


def first_convolution(layout: CnnLayout, swap: Swap) -> jax.Array:
    """Returns the index of the first convolution that a swap changes, int32 `[]`; their number if none changes."""
    branches = jnp.stack([swap.pruned, swap.grown])[:, None]
    starts = jnp.array(layout.whole.starts[1 : layout.num_stages + 1], jnp.int32)
    first = (branches >= starts[None]).sum(1, dtype=jnp.int32).min()
    return jnp.where(swap.changes_mask, first, layout.num_stages)


def changed_logits(layout: CnnLayout, state: CnnState, swap: Swap, first: int) -> jax.Array:
    """Returns the logits, float32 `[classes, samples]`, after a swap that first changes convolution `first`."""
    samples = state.cache.features.shape[-1]
    number, size = blocks(samples, block_samples(layout, first))
    weights = weights_after(layout, state.position, swap, swap, first, 0)

    def one_block(i, logits):
        block = Block(jnp.minimum(i * size, samples - size), size)
        changed = changed_block(layout, state.cache, swap, weights, first, block)
        return update(logits, changed.dense[-1], (0, block.start))

    return jax.lax.fori_loop(0, number, one_block, state.cache.dense.outputs[-1])


def commit(layout: CnnLayout, state: CnnState, swap: Swap, pending: CnnPending, accepted: jax.Array) -> CnnState:
    """Returns the state after the proposal; if not accepted, bool `[]`, only the scratch changes."""
    state = state.with_tail(mlp_commit.commit(layout.tail, state.tail, swap, pending.dense, accepted))
    for number in range(layout.num_stages):
        state = _committed(layout, state, swap, number, accepted & (pending.first == number))
    return state


def _committed(layout, state, swap, first, made):
    """Returns the state with the changes of a swap written, if it is made and `first` is where it begins."""
    samples = state.cache.features.shape[-1]
    number, size = blocks(samples, block_samples(layout, first))

    times = batch_bound(made.astype(jnp.int32))

    def update_all(i, cache):
        weights = weights_after(layout, state.position, None, swap, first, i)

        def one_block(j, cache):
            block = Block(jnp.minimum(j * size, samples - size), size)
            changed = changed_block(layout, cache, swap, weights, first, block)
            # The last block may overlap the previous block. The samples in both must not be updated twice.
            fresh = made & (block.start + jnp.arange(size) >= j * size)

            with_slot = partial(_with_slot, layout, changed, first, weights.channels, block, fresh)

            def write(_, cache):
                cache = jax.lax.fori_loop(0, 2 * times, with_slot, cache)
                return with_whole(layout, cache, changed, first, block, fresh)

            # In a loop of one pass, so that XLA reads all that is needed before it writes, and one channel at a
            # time. Otherwise it would copy the arrays.
            return jax.lax.fori_loop(0, times, write, cache)

        return jax.lax.fori_loop(0, number, one_block, cache)

    return state._replace(cache=jax.lax.fori_loop(0, times, update_all, state.cache))


def remember(best: PyTree, state: CnnState, improved: jax.Array) -> tuple[PyTree, CnnState]:
    """Returns the best position and the state; if improved, bool `[]`, the best is the state's position."""
    best, tail = mlp_commit.remember(best, state.tail, improved)
    return best, state.with_tail(tail)


def _with_slot(layout, changed, first, channels, block, fresh, slot, cache):
    """Returns the cache with the channels that one branch of a swap changes, in one block of samples."""
    outputs, entering, features = list(cache.outputs), list(cache.entering), cache.features
    channel = channels[slot]
    for number, found in enumerate(changed.convolutions, first):
        if isinstance(found, Few):
            before, after = (jnp.stack(parts)[slot] for parts in (found.outputs, found.pooled))
            where, start = fresh & found.active[slot], (channel, 0, 0, block.start)
            outputs[number] = _write(outputs[number], before, start, where)
            if number < layout.num_stages - 1:
                entering[number + 1] = _write(entering[number + 1], after, start, where)
            else:
                features = _write(features, jnp.moveaxis(after, 0, 2), (0, 0, channel, block.start), where)
    return cache._replace(outputs=tuple(outputs), entering=tuple(entering), features=features)


def with_whole(
    layout: CnnLayout, cache: CnnCache, changed: Changed, first: int, block: Block, fresh: jax.Array
) -> CnnCache:
    """Returns the cache with the layers that a swap changes as a whole, but the logits, in one block of samples.

    Args:
      layout: fixed part of the landscape.
      cache: the cache before.
      changed: the values to write.
      first: the first convolution that changes.
      block: block of samples.
      fresh: for which samples to write, bool `[block]` or `[]`.
    """
    outputs, entering, features = list(cache.outputs), list(cache.entering), cache.features
    start = 0, 0, 0, block.start
    for number, found in enumerate(changed.convolutions, first):
        if isinstance(found, Whole):
            outputs[number] = _write(outputs[number], found.outputs, start, fresh)
            if number < layout.num_stages - 1:
                entering[number + 1] = _write(entering[number + 1], found.pooled, start, fresh)
            else:
                features = _write(features, jnp.moveaxis(found.pooled, 0, 2), start, fresh)
    hidden = zip(cache.dense.outputs[:-1], changed.dense[:-1], strict=True)
    rows = [_write(array, part, (0, block.start), fresh) for array, part in hidden]
    cache = CnnCache(tuple(outputs), tuple(entering), features, cache.dense)
    return with_dense(cache, [*rows, cache.dense.outputs[-1]])


def _write(array, part, start, where):
    """Returns the array with a part replaced where `where` is True, bool `[block]` or `[]`."""
    where = where.reshape((1,) * (part.ndim - 1) + (-1,))
    return update(array, jnp.where(where, part, cut(array, start, part.shape)), start)


def with_dense(cache: CnnCache, outputs: list[jax.Array]) -> CnnCache:
    """Returns the cache with other outputs of the dense layers, float32 `[units, samples]` each."""
    return cache._replace(dense=cache.dense._replace(outputs=tuple(outputs)))
