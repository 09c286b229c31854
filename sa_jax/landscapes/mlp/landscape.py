"""Assembles the landscape of a masked multilayer perceptron and evaluates its proposals.

The outputs of every layer before the activation are cached as `[units, samples]`, so that a unit's row is
contiguous. A swap changes few of these rows. In the first layer it changes the rows of one or two units. In the
second layer it changes the rows of the units that these units feed through kept branches, and so on. Only the
changed rows are read, and the logits are updated instead of computed again. The number of changed rows differs
between proposals, but shapes are static. So the rows are processed in chunks, by loops that run as often as the
proposal needs.
"""

import functools
import warnings
from functools import partial

import jax
import jax.numpy as jnp

from sa_jax import checks
from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes import native
from sa_jax.landscapes.mlp.commit import commit, remember
from sa_jax.landscapes.mlp.ends import changed_units, first_changes, places
from sa_jax.landscapes.mlp.evaluation import init, refresh
from sa_jax.landscapes.mlp.hidden import hidden_activations
from sa_jax.landscapes.mlp.layout import Layout, layout_of, mask_of
from sa_jax.landscapes.mlp.logits import block_logits
from sa_jax.landscapes.mlp.loops import BLOCK_SAMPLES, blocks, update
from sa_jax.landscapes.mlp.settling import settle
from sa_jax.landscapes.mlp.state import Block, Changes, MlpState, Pending
from sa_jax.moves.base import Swap, SwapProposal
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError, Landscape

BACKENDS = ("auto", "native", "xla")

# Some proposals use estimates of the energy. Their landscape is refreshed after a number of steps: the number of
# branches divided by BRANCHES_PER_STEP, rounded up to a multiple of LEAST_REFRESH_STEPS.
BRANCHES_PER_STEP = 40
LEAST_REFRESH_STEPS = 1_000


def masked_mlp(
    network: Network,
    swaps: SwapProposal,
    energy: Energy,
    activation: str = "relu",
    moves_weights: bool = False,
    estimates: str = "forward",
    guide: Energy | None = None,
    backend: str = "xla",
) -> Landscape:
    """Makes the landscape of the masks of a multilayer perceptron.

    Positions are flat masks, bool `[total]` (see `sa_jax.networks.masks`). Data is `(inputs, labels)` with inputs
    float32 `[features, samples]`, features first, and labels int32 `[samples]`.

    Args:
      network: the weights; any depth and widths, with or without biases.
      swaps: the proposals, such as `uniform_swap()` or `saliency_swap(...)`.
      energy: energy of the logits, such as `cross_entropy()`; called with `axis=0`.
      activation: 'relu', 'tanh' or 'gelu'.
      moves_weights: whether positions are `Weighted`, for proposals that change weights
        (`sa_jax.moves.nudge(...)`). The weights in the position then replace the weights of `network`.
      estimates: how proposals that use estimates get them: 'forward', from forward passes with perturbed units, or
        'gradient', from the derivative of the energy. Unused by all other proposals.
      guide: the energy on which these effects are estimated; None for `energy` itself. An energy such as the error
        rate is flat almost everywhere, so that it needs another one.
      backend: what evaluates the proposals: 'xla', on any device; 'native', C code for CPUs that is compiled at
        its first use and is about twice as fast; or 'auto', see `chosen_backend`. The two give the same results up
        to float rounding. `jax.export` and derivatives need 'xla'.

    Returns:
      A `Landscape`. Without `moves_weights` it equals `full_mlp` up to float rounding.

    Raises:
      InputError: if the activation, the kind of estimates or the backend is unknown, or the backend is 'native'
        and there is no native code for this energy or on this machine. While annealing, if the proposals change
        weights and `moves_weights` is False.
    """
    layout = layout_of(network, swaps, energy, activation, moves_weights, estimates, guide)
    landscape = Landscape(
        init=partial(init, layout),
        draw=swaps.draw,
        propose=partial(propose, layout),
        delta=partial(delta, layout),
        commit=partial(commit, layout),
        refresh=partial(refresh, layout),
        remember=remember,
        settle=partial(settle, layout) if chosen_backend(backend, energy, activation) == "native" else None,
    )
    if swaps.refresh is None:
        return landscape
    # With more branches the estimates cost more, and most of them stay accurate for longer.
    times = -(-network.total // (BRANCHES_PER_STEP * LEAST_REFRESH_STEPS))
    return landscape._replace(refresh_steps=times * LEAST_REFRESH_STEPS)


def chosen_backend(backend: str, energy: Energy, activation: str) -> str:
    """Returns 'native' or 'xla', what a landscape with these arguments uses.

    With 'auto' it is 'native' if the default device is a CPU, the native code knows the energy, and it can be
    compiled here. If it cannot be compiled, a warning says why, once.

    Raises:
      InputError: as `masked_mlp`.
    """
    checks.choice("backend", backend, BACKENDS)
    if backend == "xla" or (backend == "auto" and jax.default_backend() != "cpu"):
        return "xla"
    if not native.supports(energy, activation):
        if backend == "auto":
            return "xla"
        raise InputError(f"there is no native code for the energy {energy!r}: use one of sa_jax.networks.energies")
    try:
        native.ready()
    except native.Unavailable as reason:
        if backend == "native":
            raise InputError(f"backend 'native' is not possible: {reason}") from reason
        _warn_once(str(reason))
        return "xla"
    return "native"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"{reason}; XLA evaluates the proposals, at about half the speed", stacklevel=4)


def propose(layout: Layout, noise: jax.Array, state: MlpState, temperature: jax.Array) -> tuple[Swap, jax.Array]:
    """Returns a swap and its log proposal ratio, float32 `[]`."""
    del temperature
    return layout.swaps.propose(noise, state.swaps, mask_of(layout, state.position))


def delta(layout: Layout, state: MlpState, swap: Swap, data: tuple) -> tuple[jax.Array, Pending]:
    """Evaluates a swap, block by block of samples.

    Returns:
      The change of the energy, float32 `[]`, and the values that `commit` reuses.
    """
    inputs, *targets = data
    changes = first_changes(layout, state, swap, inputs)
    changed = changed_units(layout, state, swap, changes)
    logits, scratch = _all_logits(layout, state, swap, changes, changed, inputs.shape[1])
    # If no change reaches the logits, the energy does not change.
    last = changed[-1] if layout.head > 1 else changes.leaving != 0
    touched = (places(layout, swap, layout.head) != 0).any() | last.any()
    evaluated = batch_bound(touched.astype(jnp.int32)) > 0
    value = jax.lax.cond(evaluated, lambda: layout.energy(logits, *targets, axis=0), lambda: state.energy)
    value = jnp.where(touched, value, state.energy)
    return value - state.energy, Pending(value, changes, tuple(changed), logits, scratch)


def _all_logits(
    layout: Layout, state: MlpState, swap: Swap, changes: Changes, changed: list[jax.Array], samples: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the logits of all samples after the swap, and the scratch with the changes in the hidden layers."""
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
