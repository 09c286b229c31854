"""Swaps drawn by their estimated effects."""

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.moves.base import Estimates
from sa_jax.moves.informed import informed_swap


def test_informed_swaps_prefer_what_helps_and_leave_what_changes_nothing():
    mask = jnp.arange(1000) < 200
    effects = jnp.linspace(-1, 1, 1000)[jax.random.permutation(jax.random.key(0), 1000)]
    dead = jnp.arange(1000) % 2 == 0
    effects = jnp.where(dead, 0, effects)
    swaps = informed_swap()
    state = jax.jit(lambda: swaps.refresh(swaps.init(mask), mask, Estimates(effects, effects, effects)))()
    keys = jax.random.split(jax.random.key(1), 4_000)
    swap, ratio = jax.jit(jax.vmap(lambda key: swaps.propose(swaps.draw(key), state, mask)))(keys)
    made = np.asarray(ratio) > -np.inf
    pruned, grown = np.asarray(swap.pruned)[made], np.asarray(swap.grown)[made]
    assert made.mean() > 0.9
    assert np.mean(effects[pruned]) > np.mean(effects[mask]) + 0.2
    assert np.mean(effects[grown]) < -0.5
    assert np.mean(dead[grown]) < 0.08
