"""A whole proposal in native code: its energy, its acceptance and the outputs of the layers after it."""

import jax
import jax.numpy as jnp

from sa_jax.landscapes import native
from sa_jax.landscapes.mlp.commit import moved
from sa_jax.landscapes.mlp.ends import ends
from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.state import MlpState
from sa_jax.moves.base import Swap


def settle(
    layout: Layout,
    state: MlpState,
    swap: Swap,
    log_q_ratio: jax.Array,
    log_u: jax.Array,
    temperature: jax.Array,
    data: tuple,
) -> tuple[MlpState, jax.Array, jax.Array]:
    """Does what `delta`, `sa_jax.annealing.chain.accept` and `commit` do together, up to float rounding.

    Returns:
      The state after the proposal; whether it is accepted, bool `[]`; and its energy change, float32 `[]`.
    """
    inputs, targets = data
    ends(layout, swap, 0)  # refuses proposals that change weights where the weights are fixed
    accepted, energy, outputs = native.settle(
        layout.energy,
        layout.activation,
        (swap.pruned, swap.grown),
        jnp.float32(0) if swap.nudge is None else swap.nudge,
        (log_q_ratio, log_u, temperature, state.energy),
        mask_of(layout, state.position),
        inputs,
        targets,
        [state.position.weights] if layout.moves_weights else layout.weights,
        state.cache.outputs,
    )
    return (
        moved(layout, state, swap, accepted, energy).with_cache(outputs=outputs),
        accepted,
        energy - state.energy,
    )
