"""Random bits drawn ahead of the steps: the same moves, without a key in the step wherever that is possible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import anneal, from_energy, geometric_schedule
from sa_jax.annealing import chain, drawing

KEY, STEPS = jax.random.key(3), 250
random = jax.random


def swapped(rng_key, x):
    i, j = random.randint(rng_key, (2,), 0, x.size)
    return x.at[i].set(x[j]).at[j].set(x[i] + 0.01)


def under_condition(rng_key, x):
    return jax.lax.cond(x.sum() > 0, lambda: x + 0.3 * random.normal(rng_key, x.shape), lambda: x + 0.1)


def with_ratio(rng_key, x):
    one, other = random.split(rng_key)
    return x + 0.3 * random.normal(one, x.shape), 0.1 * random.uniform(other)


def dropping_outputs(rng_key, x):
    _, order = jax.lax.sort((random.bits(rng_key, x.shape), jnp.arange(x.size)), num_keys=1)
    return x[order] + 0.1


def in_a_loop(rng_key, x):
    return jax.lax.fori_loop(0, 2, lambda i, x: x.at[i].add(random.normal(random.fold_in(rng_key, i))), x)


# Each with the number of keys that the step still needs.
MOVES = {
    "swap": (swapped, 0),
    "jitted": (jax.jit(swapped), 0),
    "jitted twice": (jax.jit(lambda rng_key, x: jax.jit(swapped)(random.fold_in(rng_key, 7), x)), 0),
    "normal": (lambda rng_key, x: x + 0.3 * random.normal(rng_key, x.shape), 0),
    "uniform within": (lambda rng_key, x: x + random.uniform(rng_key, x.shape, minval=-x, maxval=0.2), 0),
    "permutation": (random.permutation, 0),
    "bernoulli": (lambda rng_key, x: jnp.where(random.bernoulli(rng_key, 0.3, x.shape), 0.1 - x, x), 0),
    "bounds that move": (lambda rng_key, x: x.at[random.randint(rng_key, (), 0, 1 + (x[0] > 0))].add(0.1), 0),
    "ratio": (with_ratio, 0),
    "dropped outputs": (dropping_outputs, 0),
    "no key": (lambda rng_key, x: x[::-1] * 0.9, 0),
    "condition": (under_condition, 1),
    "loop": (in_a_loop, 1),
}


def energy(x, shift):
    return (x**2).sum() + jnp.cos(5 * x + shift).sum()


def annealed(move, position, monkeypatch, ahead, keys=KEY):
    """What one chain, or a vmapped one for each key, gives."""
    if not ahead:
        monkeypatch.setattr(chain, "drawn_ahead", lambda landscape, *arguments: landscape)

    def one(rng_key, position, shift):
        landscape, schedule = from_energy(energy, move), geometric_schedule(1.0, 0.1, STEPS)
        return anneal(rng_key, landscape, position, schedule, STEPS, (shift,), trace_every=1)

    run = jax.jit(one if keys.ndim == 0 else jax.vmap(one, (0, None, None)))
    found = run(keys, position, jnp.float32(0.2))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("name", ["jitted twice", "normal", "ratio", "condition"])
def test_the_chain_is_the_same_bit_for_bit(name, monkeypatch):
    position = jnp.linspace(-1, 1, 5)
    found, expected = (annealed(MOVES[name][0], position, monkeypatch, ahead) for ahead in (True, False))
    assert int(expected.num_accepted) > 10
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_vmapped_chains_are_the_same(monkeypatch):
    keys, position = random.split(KEY, 3), jnp.linspace(-1, 1, 5)
    found, expected = (annealed(with_ratio, position, monkeypatch, ahead, keys) for ahead in (True, False))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def ahead_of(landscape, rng_key=KEY, position=None):
    walk = landscape.init(jnp.linspace(-1, 1, 5) if position is None else position, (0.2,))
    return drawing.drawn_ahead(landscape, rng_key, walk, jnp.float32(1))


@pytest.mark.parametrize("name", MOVES)
def test_a_step_gets_bits_in_place_of_its_key(name):
    move, num_keys = MOVES[name]
    landscape = from_energy(energy, move)
    ahead, walk = ahead_of(landscape), landscape.init(jnp.linspace(-1, 1, 5), (0.2,))
    noise = ahead.draw(KEY)
    found, expected = (jax.jit(one.propose)(given, walk, 1.0) for one, given in ((ahead, noise), (landscape, KEY)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    keys = [leaf for leaf in noise if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len(keys) == num_keys
    assert all(jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool for leaf in noise if leaf not in keys)


def test_large_values_stay_in_the_step():
    """Of 100 steps of 64 kB they would take 6.4 MB."""
    landscape = from_energy(energy, lambda rng_key, x: x + random.normal(rng_key, x.shape))
    few = ahead_of(landscape, position=jnp.ones(drawing.MOST_BYTES // 4))
    assert [leaf.shape for leaf in few.draw(KEY)] == [(drawing.MOST_BYTES // 4,)]
    many = ahead_of(landscape, position=jnp.ones(drawing.MOST_BYTES // 4 + 1))
    (noise,) = many.draw(KEY)
    assert noise == KEY


def test_legacy_keys_are_drawn_ahead_too():
    with jax.legacy_prng_key("allow"):
        rng_key = random.PRNGKey(3)
        noise = ahead_of(from_energy(energy, swapped), rng_key).draw(rng_key)
        expected = ahead_of(from_energy(energy, swapped)).draw(KEY)
    jax.tree.map(np.testing.assert_array_equal, noise, expected)


def test_other_landscapes_stay_as_they_are():
    by_itself = from_energy(energy, lambda noise, x: x + noise, draw=random.normal)
    assert ahead_of(by_itself) is by_itself
    landscape = from_energy(energy, swapped)
    assert ahead_of(landscape, random.key(3, impl="rbg")) is landscape
    with jax.disable_jit():
        assert ahead_of(landscape) is landscape


def test_effects_happen_once_in_each_step():
    seen = []

    def told(rng_key, x):
        jax.debug.callback(lambda bits: seen.append(int(bits)), random.bits(rng_key))
        return swapped(rng_key, x)

    run = jax.jit(lambda key, x: anneal(key, from_energy(energy, told), x, 1.0, 130, (0.2,)))
    jax.block_until_ready(run(KEY, jnp.linspace(-1, 1, 5)))
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 130


def test_moves_inside_shard_map(monkeypatch):
    mesh = jax.make_mesh((1,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def chains(keys, position):
        def one(key):
            landscape = from_energy(energy, with_ratio)
            return anneal(key, landscape, position, 1.0, STEPS, (jnp.float32(0.2),)).best

        return jax.vmap(one)(keys)

    keys, position = random.split(KEY, 2), jnp.linspace(-1, 1, 5)
    sharded = jax.shard_map(chains, mesh=mesh, in_specs=(spec("chains"), spec()), out_specs=spec("chains"))
    np.testing.assert_array_equal(jax.jit(sharded)(keys, position), jax.jit(chains)(keys, position))


def test_a_draw_of_its_own_gives_the_move_its_noise(rng_key):
    by_noise = from_energy(
        lambda x: x**2,
        lambda noise, x: x + noise["step"],
        draw=lambda rng_key: {"step": random.normal(rng_key)},
    )
    by_key = from_energy(lambda x: x**2, lambda rng_key, x: x + random.normal(rng_key))
    found, expected = (anneal(rng_key, landscape, 3.0, 0.1, 500) for landscape in (by_noise, by_key))
    assert float(found.best) == pytest.approx(float(expected.best), abs=1e-5)
    assert float(found.best_energy) < 1e-3
