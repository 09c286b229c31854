"""The checks of `sa_jax.testing` accept correct landscapes and name the mistakes of wrong ones."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, from_energy
from sa_jax.testing import check_boltzmann, check_detailed_balance, visits
from tests.conftest import refusal
from tests.settings import strict, x64

WELLS = jnp.array([0.3, 0.0, 0.9, 0.5])


def lopsided(rng_key, x):
    up = jax.random.bernoulli(rng_key, 0.8)
    return (x + jnp.where(up, 1, -1)) % 4, jnp.where(up, jnp.log(0.25), jnp.log(4.0))


RIGHT = from_energy(lambda x: WELLS[x], lopsided)
EFFORT = {"num_draws": 4_000, "num_chains": 16, "num_samples": 100}


def check(landscape, positions=None, **options):
    positions = jnp.arange(4) if positions is None else positions
    return check_detailed_balance(jax.random.key(0), landscape, positions, temperature=0.4, **EFFORT | options)


@pytest.mark.slow
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
    """Stores a wrong energy for well 0. Single proposals do not show this mistake."""
    new = RIGHT.commit(state, moved, pending, accepted)
    return new._replace(energy=jnp.where(new.position == 0, 5.0, new.energy))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"delta": wrong_delta},
            "energy changes are wrong for 8 pairs; the worst, from . to ., is wrong by 0.00",
        ),
        (
            {"propose": without_ratio},
            "proposal ratios are wrong for 8 of 8 pairs.*stated as 0.000, a difference of",
        ),
        ({"propose": one_way}, "proposals lead from 0 to 1, 4,000 times, and never back"),
        ({"commit": forgetful}, "the positions visited are not Boltzmann's: chi-square .* 3 degrees"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(AssertionError, match=message):
        check(RIGHT._replace(**change))


@pytest.mark.slow
def test_a_position_that_was_left_out_is_named():
    with pytest.raises(AssertionError, match="from position 2 led to a position that is not listed"):
        check(RIGHT, jnp.arange(3))
    with pytest.raises(AssertionError, match="positions visited are not listed"):
        visits(jax.random.key(0), RIGHT, jnp.arange(3), (), 0.4, 4, 20)


@pytest.mark.slow
def test_positions_are_any_pytree():
    positions = {"a": jnp.repeat(jnp.arange(2), 2), "b": (jnp.tile(jnp.arange(2), 2)[:, None],)}

    def move(rng_key, position):
        a, b = jax.random.randint(rng_key, (2,), 0, 2)
        return {"a": a, "b": (b[None],)}

    landscape = from_energy(lambda x: x["a"] + 0.5 * x["b"][0].sum(), move)
    found = check(landscape, positions)
    assert found.probabilities[0] == found.probabilities.max()


@pytest.mark.slow
def test_bad_input_is_named():
    for temperature in (0.0, -1.0, np.nan, np.inf, "hot"):
        with refusal("temperature must be a finite number above 0, not"):
            check_boltzmann(np.ones(3), np.ones(3), temperature)
    for option, value in (("num_draws", 0), ("num_chains", -1), ("num_samples", 1.5), ("steps_apart", 100.0)):
        with refusal(f"{option} must be a whole number of at least 1, not {value}"):
            check(RIGHT, **{option: value})
    with pytest.raises(InputError, match="steps_apart must be a multiple of 100, not 50"):
        visits(jax.random.key(0), RIGHT, jnp.arange(4), steps_apart=50)
    for positions in ([0, 1, 2, 3], jnp.arange(0), (jnp.arange(4), jnp.arange(3))):
        with pytest.raises(InputError, match="positions must be arrays with a leading axis"):
            check(RIGHT, positions)
    with pytest.raises(InputError, match="positions 1 and 3 are the same: list each once"):
        check(RIGHT, jnp.array([0, 1, 2, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
def test_positions_with_axes_are_compared_where_nothing_is_promoted(wide):
    """Energies are float64 where arrays may be."""
    with x64() if wide else nullcontext(), strict():
        positions = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])

        def flip(rng_key, x):
            return jnp.where(jnp.arange(2) == jax.random.randint(rng_key, (), 0, 2), 1 - x, x)

        landscape = from_energy(lambda x: (x * jnp.array([0.3, 0.7])).sum(), flip)
        with jax.debug_nans(True):
            found = check(landscape, positions)
        assert found.energy_error < 1e-6 and found.counts.sum() == 1_600
        wrong = landscape._replace(
            delta=lambda *arguments: (jnp.zeros_like(arguments[0].energy), arguments[0].energy)
        )
        with pytest.raises(AssertionError, match="energy changes are wrong for 8 pairs"):
            check(wrong, positions)


@pytest.mark.slow
def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        assert check(RIGHT).counts.sum() == 1_600


@pytest.mark.slow
def test_too_little_to_judge_by_is_no_pass():
    """Many positions and few draws. The move prefers low numbers, but states that it is symmetric."""
    steep = from_energy(lambda x: 0.0 * x, lambda key, x: (400 * jax.random.beta(key, 1.0, 4.0)).astype(jnp.int32))
    with pytest.raises(InputError, match="more than 200 proposals in each direction: raise num_draws"):
        check(steep, jnp.arange(400), num_draws=500)
    with pytest.raises(InputError, match="1,000 visits of 3,000 positions are too few to judge"):
        check_boltzmann(np.append(1_000, np.zeros(2_999, int)), np.zeros(3_000), 1.0)
    with pytest.raises(InputError, match="0 visits of 3 positions are too few"):
        check_boltzmann(np.zeros(3, int), np.zeros(3), 1.0)


@pytest.mark.parametrize("stated", [-200.0, 60.0, 100.0, jnp.inf, jnp.nan])
def test_absurd_ratios_are_wrong(stated):
    def propose(noise, state, temperature):
        moved, ratio = RIGHT.propose(noise, state, temperature)
        return moved, jnp.full_like(ratio, stated)

    with pytest.raises(AssertionError, match="proposal ratios are wrong for 8 of 8 pairs"):
        check(RIGHT._replace(propose=propose))


@pytest.mark.slow
def test_a_great_energy_in_common_hides_no_wrong_change():
    def changed(by):
        landscape = from_energy(lambda x: 1e4 + WELLS[x], lopsided)

        def delta(state, moved, data):
            change, pending = landscape.delta(state, moved, data)
            return change + by, pending

        return landscape._replace(delta=delta)

    assert check(changed(0.0)).energy_error < 0.01
    with pytest.raises(AssertionError, match="energy changes are wrong"):
        check(changed(0.1))


@pytest.mark.slow
def test_positions_of_infinite_energy_are_never_visited():
    walled = from_energy(lambda x: jnp.where(x == 2, jnp.inf, WELLS[x]), lopsided)
    found = check(walled)
    assert found.counts[2] == 0 and np.isfinite(found.energy_error)
