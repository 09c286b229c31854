"""Swaps that draw the branch to keep by a fixed score."""

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.moves.base import UNIFORM_SHARE
from sa_jax.moves.saliency import saliency_swap


def test_pruned_branches_are_drawn_by_their_scores():
    scores = jnp.array([4.0, 0.0, 1.0, 2.0, 0.0, 7.0, 1.0, 3.0])
    mask = jnp.arange(8) < 2
    swaps = saliency_swap(scores)
    state = swaps.init(mask)
    keys = jax.random.split(jax.random.key(0), 20_000)
    swap, ratio = jax.jit(jax.vmap(lambda key: swaps.propose(swaps.draw(key), state, mask)))(keys)
    made = np.asarray(ratio) > -np.inf
    assert made.mean() > 0.98
    # All of the kept branches are as likely to be pruned.
    np.testing.assert_allclose(np.bincount(swap.pruned[made]) / made.sum(), [0.5, 0.5], atol=0.02)
    chances = np.where(mask, 0, UNIFORM_SHARE / 8 + (1 - UNIFORM_SHARE) * scores / scores.sum())
    drawn = np.bincount(swap.grown[made], minlength=8) / made.sum()
    np.testing.assert_allclose(drawn, chances / chances.sum(), atol=0.02)
