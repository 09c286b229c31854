"""The test kit passes what is right and names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, from_energy
from sa_jax.testing import check_boltzmann, check_detailed_balance, visits

WELLS = jnp.array([0.3, 0.0, 0.9, 0.5])


def lopsided(rng_key, x):
    up = jax.random.bernoulli(rng_key, 0.8)
    return (x + jnp.where(up, 1, -1)) % 4, jnp.where(up, jnp.log(0.25), jnp.log(4.0))


RIGHT = from_energy(lambda x: WELLS[x], lopsided)
EFFORT = {"num_draws": 4_000, "num_chains": 16, "num_samples": 100}


def check(landscape, positions=None, **options):
    positions = jnp.arange(4) if positions is None else positions
    return check_detailed_balance(jax.random.key(0), landscape, positions, temperature=0.4, **EFFORT | options)


def test_what_is_right_passes():
    found = check(RIGHT)
    assert found.counts.sum() == 1_600 and found.p_value > 1e-3
    assert found.energy_error < 1e-6 and 0 < found.ratio_error < 5
    np.testing.assert_allclose(found.probabilities.sum(), 1)
    np.testing.assert_allclose(found.counts / 1_600, found.probabilities, atol=0.06)


def wrong_delta(state, moved, data):
    change, pending = RIGHT.delta(state, moved, data)
    return 1.01 * change, pending


def without_ratio(noise, state, temperature):
    moved, ratio = RIGHT.propose(noise, state, temperature)
    return moved, 0 * ratio


def one_way(noise, state, temperature):
    return (state.position + 1) % 4, jnp.float32(0)


def forgetful(state, moved, pending, accepted):
    """Keeps a wrong energy of well 0, which single proposals do not show."""
    new = RIGHT.commit(state, moved, pending, accepted)
    return new._replace(energy=jnp.where(new.position == 0, 5.0, new.energy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"delta": wrong_delta},
            "energy changes are wrong for 8 pairs; the worst, from . to .: off by 0.00",
        ),
        ({"propose": without_ratio}, "proposal ratios are wrong for 8 of 8 pairs.*stated 0.000"),
        ({"propose": one_way}, "proposals lead from 0 to 1, 4,000 times, and never back"),
        ({"commit": forgetful}, "the positions visited are not Boltzmann's: chi-square .* 3 degrees"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(AssertionError, match=message):
        check(RIGHT._replace(**change))


def test_a_position_that_was_left_out_is_named():
    with pytest.raises(AssertionError, match="from position 2 led to a position that is not listed"):
        check(RIGHT, jnp.arange(3))
    with pytest.raises(AssertionError, match="positions visited are not listed"):
        visits(jax.random.key(0), RIGHT, jnp.arange(3), (), 0.4, 4, 20)


def test_positions_are_any_pytree():
    positions = {"a": jnp.repeat(jnp.arange(2), 2), "b": (jnp.tile(jnp.arange(2), 2)[:, None],)}

    def move(rng_key, position):
        a, b = jax.random.randint(rng_key, (2,), 0, 2)
        return {"a": a, "b": (b[None],)}

    landscape = from_energy(lambda x: x["a"] + 0.5 * x["b"][0].sum(), move)
    found = check(landscape, positions)
    assert found.probabilities[0] == found.probabilities.max()


def test_bad_input_is_named():
    with pytest.raises(InputError, match="temperature must be above 0"):
        check_boltzmann(np.ones(3), np.ones(3), 0.0)
    with pytest.raises(InputError, match="steps_apart must be a multiple of 100, not 50"):
        visits(jax.random.key(0), RIGHT, jnp.arange(4), steps_apart=50)
