"""The landscapes that evaluate each proposal in full."""

import jax
import numpy as np
import pytest

from sa_jax import InputError, anneal, geometric_schedule
from sa_jax.landscapes.full import full_mlp
from sa_jax.landscapes.mlp import evaluation, masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks
from sa_jax.networks.energies import cross_entropy
from tests.landscapes.networks import TINY, make_network, make_samples


@pytest.mark.slow
def test_full_landscape_walks_alike(rng_key, monkeypatch):
    """The same swaps by full evaluation and through the cache end in the same masks.

    The best is kept up by notes of swaps where there is room for them, else copied.
    """
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 40)
    kept = network.total // 2
    mask = masks.random(rng_key, network.total, kept)
    swaps, energy = uniform_swap(), cross_entropy(2.0)

    def walk(landscape, start):
        schedule = geometric_schedule(0.3, 0.003, 2_000)
        return jax.jit(lambda key: anneal(key, landscape, start, schedule, 2_000, data=(x.T, y)))(rng_key)

    slow_result = walk(full_mlp(network, swaps, energy), (mask, swaps.init(mask)))
    for branches_per_note in (1, 30, 4_096):
        monkeypatch.setattr(evaluation, "BRANCHES_PER_NOTE", branches_per_note)
        fast_result = walk(masked_mlp(network, swaps, energy), mask)
        np.testing.assert_array_equal(slow_result.final[0], fast_result.final)
        np.testing.assert_array_equal(slow_result.best[0], fast_result.best)
        np.testing.assert_allclose(slow_result.best_energy, fast_result.best_energy, rtol=1e-4)
        assert int(fast_result.best.sum()) == kept


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match="activation must be one of relu, tanh, gelu, not 'sine'"):
        full_mlp(TINY, uniform_swap(), cross_entropy(), "sine")
