"""Searches without derivatives lower the energy, the more evaluations the better."""

import jax
import jax.numpy as jnp
import pytest

from sa_jax.baselines import scores, search
from sa_jax.networks import mlp
from sa_jax.networks.energies import cross_entropy


@pytest.mark.slow
def test_searches_lower_the_energy_and_more_evaluations_never_raise_it(digits, trained_network):
    x, y = (jnp.asarray(part[:200]) for part in digits.train)
    energy = cross_entropy()

    def of(mask):
        return float(energy(mlp.forward(mlp.masked(trained_network, mask), x), y))

    start = of(scores.magnitude_global(trained_network, 173))
    arguments = jax.random.key(1), trained_network, x, y, 173
    tried = [of(search.random_search(*arguments, n)) for n in (1, 30, 300)]
    assert tried[0] >= tried[1] >= tried[2] and tried[0] > tried[2]
    for method in (search.greedy_swaps, search.genetic_algorithm):
        assert of(method(*arguments, 600)) < 0.98 * start
