"""The landscape of a layer's output error: exact changes, and the Boltzmann distribution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import anneal
from sa_jax.landscapes.linear import heat_bath_rows, linear_rows
from sa_jax.moves.saliency import saliency_swap
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks
from sa_jax.pruning.moments import dense_correction, no_inputs, with_inputs
from sa_jax.testing import check_detailed_balance, energies_of
from tests.landscapes.layers import all_masks, energy_of, layer

LANDSCAPES = {
    "uniform": lambda w, h: linear_rows(w, h, uniform_swap()),
    "saliency": lambda w, h: linear_rows(w, h, saliency_swap(jnp.abs(w.ravel()))),
    "heat bath": heat_bath_rows,
    "heat bath in groups": lambda w, h: heat_bath_rows(w, h, 4),
    "heat bath in two stages": heat_bath_rows,
}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_every_change_is_that_of_the_whole_energy(name, rows):
    weight, gram = layer(rows, 40 if name.endswith("stages") else 8)
    landscape = LANDSCAPES[name](weight, gram)
    mask = masks.random(jax.random.key(1), weight.size, weight.size // 2).reshape(weight.shape)
    if name.endswith("groups"):
        mask = jnp.tile(jnp.array([True, False, True, False]), weight.size // 4).reshape(weight.shape)
    state = landscape.init(mask, ())

    @jax.jit
    def step(state, key):
        move, log_q_ratio = landscape.propose(landscape.draw(key), state, jnp.float32(10.0))
        change, pending = landscape.delta(state, move, ())
        return change, landscape.commit(state, move, pending, log_q_ratio > -jnp.inf), log_q_ratio

    changed = 0
    for key in jax.random.split(jax.random.key(2), 60):
        change, after, log_q_ratio = step(state, key)
        expected = energy_of(weight, gram, after.position) - energy_of(weight, gram, state.position)
        if log_q_ratio > -jnp.inf:
            np.testing.assert_allclose(change, expected, atol=1e-3)
            changed += 1
        else:
            assert np.array_equal(after.position, state.position)
        state = after
        assert state.position.sum() == mask.sum()
        np.testing.assert_allclose(state.energy, energy_of(weight, gram, state.position), rtol=1e-4, atol=1e-3)
        if name.endswith("groups"):
            assert (state.position.reshape(-1, 4).sum(1) == 2).all()
    assert changed >= 15
    fresh = landscape.refresh(state, ())
    np.testing.assert_allclose(fresh.fields, state.fields, atol=1e-3)


@pytest.mark.slow
def test_what_is_inherited_makes_the_energy_that_of_the_dense_outputs():
    keys = jax.random.split(jax.random.key(20), 4)
    x, weight = jax.random.normal(keys[0], (60, 8)), jax.random.normal(keys[1], (2, 8))
    dense = x + 0.5 * jax.random.normal(keys[2], x.shape)
    halves = zip(jnp.split(x, 2), jnp.split(dense, 2), strict=True)
    moments = functools.reduce(lambda seen, part: with_inputs(seen, part[0], None, part[1]), halves, no_inputs(8))
    linear = dense_correction(moments, weight)

    def error(mask):
        return ((x @ jnp.where(mask, weight, 0).T - dense @ weight.T) ** 2).mean(0).sum()

    for landscape in (
        heat_bath_rows(weight, moments.gram, dense_correction=linear),
        linear_rows(weight, moments.gram, uniform_swap(), linear),
    ):
        start = jnp.tile(jnp.arange(8) < 4, (2, 1))
        found = anneal(jax.random.key(0), landscape, start, 0.3, 200)
        whole = error(jnp.ones_like(start))
        np.testing.assert_allclose(found.best_energy, error(found.best) - whole, rtol=1e-4)
        np.testing.assert_allclose(found.final_energy, error(found.final) - whole, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "num_kept", "group"),
    [
        ("uniform", (1, 8), 3, None),
        ("saliency", (2, 4), 3, None),
        ("heat bath", (1, 8), 3, None),
        ("heat bath", (2, 4), 4, None),
        ("heat bath in groups", (1, 8), 2, 4),
    ],
)
def test_fixed_temperature_visits_the_boltzmann_distribution(name, shape, num_kept, group):
    weight, gram = layer(*shape, seed=3)
    landscape, every = LANDSCAPES[name](weight, gram), all_masks(shape, num_kept, group)
    energies = np.array([energy_of(weight, gram, mask) for mask in every])
    np.testing.assert_allclose(energies_of(landscape, every), energies, rtol=1e-4, atol=1e-3)
    found = check_detailed_balance(
        jax.random.key(4), landscape, every, (), np.std(energies) / 1.5, num_samples=300, significance=1e-3
    )
    assert found.probabilities.max() > 4 * found.probabilities.min()
    assert found.ratio_error > 0


@pytest.mark.slow
def test_zero_temperature_is_greedy_and_stops_where_no_swap_helps():
    weight, gram = layer(1, 12, seed=10)
    start = jnp.arange(12)[None] < 6
    found = anneal(jax.random.key(0), heat_bath_rows(weight, gram), start, 0.0, 500)
    reached = energy_of(weight, gram, found.final)
    for pruned, grown in itertools.product(*(np.flatnonzero(part) for part in (found.final[0], ~found.final[0]))):
        swapped = np.asarray(found.final).copy()
        swapped[0, pruned], swapped[0, grown] = False, True
        assert energy_of(weight, gram, swapped) > reached * (1 - 1e-4)


@pytest.mark.slow
def test_nothing_kept_or_all_kept_stays_as_it_is():
    weight, gram = layer(1, 6)
    for mask in (jnp.zeros((1, 6), bool), jnp.ones((1, 6), bool)):
        for landscape in (heat_bath_rows(weight, gram), linear_rows(weight, gram, uniform_swap())):
            found = anneal(jax.random.key(0), landscape, mask, 0.1, 50)
            assert np.array_equal(found.final, mask) and np.isfinite(found.final_energy)


@pytest.mark.slow
def test_chains_that_keep_nothing_stay_so_beside_chains_that_keep_some():
    """In a batch every chain commits, also where its own proposal is to stay."""
    weight, gram = layer(2, 6)
    starts = jnp.arange(12).reshape(2, 6) < jnp.array([0, 1, 12])[:, None, None]
    for landscape in (heat_bath_rows(weight, gram), linear_rows(weight, gram, uniform_swap())):
        run = jax.vmap(lambda key, start, landscape=landscape: anneal(key, landscape, start, 10.0, 50).final)
        assert run(jax.random.split(jax.random.key(0), 3), starts).sum((1, 2)).tolist() == [0, 1, 12]


@pytest.mark.slow
@pytest.mark.parametrize("make", [heat_bath_rows, lambda w, h: linear_rows(w, h, uniform_swap())])
def test_arrays_of_numpy_in_any_byte_order_give_the_same(make):
    weight, gram = (np.asarray(array) for array in layer(2, 8))
    start = jnp.arange(16).reshape(2, 8) % 2 == 0
    expected = anneal(jax.random.key(0), make(jnp.asarray(weight), jnp.asarray(gram)), start, 0.5, 100)
    for kind in ("<f4", ">f4", "<f8", ">f8"):
        found = anneal(jax.random.key(0), make(weight.astype(kind), gram.astype(kind)), start, 0.5, 100)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
