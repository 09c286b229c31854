"""The landscape, assembled: what happens to a proposal, in the order in which it happens.

Pre-activations of every layer are cached as `[units, samples]`, so that a unit's row is contiguous. A swap
changes few of them: in the first layer the rows of one or two units, in the second those of the units
that these feed through kept branches, and so on. Only these rows are read, and the logits are updated
rather than computed anew. How many they are differs from proposal to proposal, while shapes are static:
so loops over chunks of rows run as often as the proposal at hand needs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.commit import commit, remember
from sa_jax.landscapes.mlp.ends import changed_units, first_changes, places
from sa_jax.landscapes.mlp.evaluation import init, refresh
from sa_jax.landscapes.mlp.hidden import hidden_activations
from sa_jax.landscapes.mlp.layout import Layout, layout_of, mask_of
from sa_jax.landscapes.mlp.logits import block_logits
from sa_jax.landscapes.mlp.loops import BLOCK_SAMPLES, blocks, update
from sa_jax.landscapes.mlp.state import Block, Changes, MlpState, Pending
from sa_jax.moves.base import Swap, SwapProposal
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.types import Landscape

# Estimates of the energy, for proposals that want them, are made anew after one step for so many branches, rounded
# up to a multiple of the second.
BRANCHES_PER_STEP = 40
LEAST_REFRESH_STEPS = 1_000


def masked_mlp(
    network: Network, swaps: SwapProposal, energy: Energy, activation: str = "relu", moves_weights: bool = False
) -> Landscape:
    """Makes the landscape of the masks of a fixed-weight multilayer perceptron.

    Positions are flat masks, bool `[total]` (see `masks`), and data is `(inputs, labels)` with inputs float32
    `[features, samples]`, features first, and labels int32 `[samples]`.

    Args:
      network: the fixed weights; any depth and widths, with or without biases.
      swaps: the proposals, such as `uniform_swap()` or `saliency_swap(...)`.
      energy: of the logits, such as `cross_entropy()`; called with `axis=0`.
      activation: 'relu', 'tanh' or 'gelu'.
      moves_weights: whether positions are `Weighted`, whose weights then stand for those of `network`: for
        proposals that change weights, `moves.nudge(...)`.

    Returns:
      A `Landscape`, equal to `full_mlp` up to float rounding where no weights move.

    Raises:
      InputError: an unknown activation; when annealed, proposals that change weights where none move.
    """
    layout = layout_of(network, swaps, energy, activation, moves_weights)
    landscape = Landscape(
        init=partial(init, layout),
        draw=swaps.draw,
        propose=partial(propose, layout),
        delta=partial(delta, layout),
        commit=partial(commit, layout),
        refresh=partial(refresh, layout),
        remember=remember,
    )
    if swaps.refresh is None:
        return landscape
    # The more branches, the more the estimates cost, and the longer they hold for most of them.
    times = -(-network.total // (BRANCHES_PER_STEP * LEAST_REFRESH_STEPS))
    return landscape._replace(refresh_steps=times * LEAST_REFRESH_STEPS)


def propose(layout: Layout, noise: jax.Array, state: MlpState, temperature: jax.Array) -> tuple[Swap, jax.Array]:
    """Draws a swap; returns it and its log proposal ratio, float32 `[]`."""
    del temperature
    return layout.swaps.propose(noise, state.swaps, mask_of(layout, state.position))


def delta(layout: Layout, state: MlpState, swap: Swap, data: tuple) -> tuple[jax.Array, Pending]:
    """Evaluates a swap block by block of samples; returns the energy's change, float32 `[]`, and the rest."""
    inputs, *targets = data
    changes = first_changes(layout, state, swap, inputs)
    changed = changed_units(layout, state, swap, changes)
    logits, scratch = _all_logits(layout, state, swap, changes, changed, inputs.shape[1])
    # Where nothing leads on to the logits the energy is what it was.
    last = changed[-1] if layout.head > 1 else changes.leaving != 0
    touched = (places(layout, swap, layout.head) != 0).any() | last.any()
    evaluated = batch_bound(touched.astype(jnp.int32)) > 0
    value = jax.lax.cond(evaluated, lambda: layout.energy(logits, *targets, axis=0), lambda: state.energy)
    value = jnp.where(touched, value, state.energy)
    return value - state.energy, Pending(value, changes, tuple(changed), logits, scratch)


def _all_logits(
    layout: Layout, state: MlpState, swap: Swap, changes: Changes, changed: list[jax.Array], samples: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The logits of all samples after the swap, and the scratch that led to them."""
    number, size = blocks(samples, samples if layout.narrow else BLOCK_SAMPLES)

    def one_block(i, carry):
        logits, scratch = carry
        block = Block(jnp.minimum(i * size, samples - size), size)
        now = state.with_cache(scratch=scratch)
        if layout.head > 2:
            now = now.with_cache(scratch=hidden_activations(layout, now, swap, changes, changed, block))
        new = block_logits(layout, now, swap, changes, changed, block)
        return new if number == 1 else update(logits, new, (0, block.start)), now.cache.scratch

    if number == 1:
        return one_block(0, (None, state.cache.scratch))
    return jax.lax.fori_loop(0, number, one_block, (state.cache.outputs[-1], state.cache.scratch))
