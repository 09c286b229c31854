"""Swaps drawn uniformly, from all branches and within sets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.moves.uniform import swap_within, uniform_swap


def proposals(swaps, mask, number=8_000):
    state = swaps.init(mask)
    keys = jax.random.split(jax.random.key(0), number)
    swap, ratio = jax.jit(jax.vmap(lambda key: swaps.propose(swaps.draw(key), state, mask)))(keys)
    return np.asarray(swap.pruned), np.asarray(swap.grown), np.asarray(ratio)


@pytest.mark.parametrize("name", ["uniform", "within"])
def test_every_allowed_swap_is_as_likely_and_symmetric(name):
    sets = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    mask = jnp.array([True, True, False, False, True, True, False, False])
    swaps = uniform_swap() if name == "uniform" else swap_within(sets)
    pruned, grown, ratio = proposals(swaps, mask)
    pairs = itertools.product(np.flatnonzero(mask), np.flatnonzero(~mask))
    allowed = {pair for pair in pairs if name == "uniform" or sets[pair[0]] == sets[pair[1]]}
    found = list(zip(pruned.tolist(), grown.tolist(), strict=True))
    assert set(found) == allowed and (ratio == 0).all()
    counts = np.array([found.count(pair) for pair in sorted(allowed)])
    expected = len(found) / len(allowed)
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_a_set_without_a_pruned_branch_stays():
    mask = jnp.array([True, True, True, False])
    pruned, grown, ratio = proposals(swap_within(np.array([0, 0, 1, 1])), mask, 500)
    full = pruned < 2
    assert full.any() and (~full).any()
    assert (pruned == grown)[full].all() and (ratio[full] == -np.inf).all()
    assert (pruned[~full] == 2).all() and (grown[~full] == 3).all() and (ratio[~full] == 0).all()
