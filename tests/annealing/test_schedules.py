"""Temperature schedules, and temperatures calibrated from sampled energy changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import (
    InputError,
    Landscape,
    calibrate,
    constant_schedule,
    cosine_schedule,
    from_energy,
    geometric_schedule,
    linear_schedule,
    logarithmic_schedule,
)

FALLING = [geometric_schedule, linear_schedule, cosine_schedule]


def temperatures_of(schedule, num_steps):
    """The temperatures of the first steps, with all steps traced as in `anneal`."""
    return jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32)))(jnp.arange(num_steps))


@pytest.mark.parametrize("make", FALLING)
def test_a_schedule_goes_from_start_to_end_and_stays(make):
    temperatures = temperatures_of(make(2.0, 0.5, 11), 15)
    assert (float(temperatures[0]), float(temperatures[10])) == pytest.approx((2.0, 0.5))
    assert (jnp.diff(temperatures[:11]) < 0).all()
    np.testing.assert_array_equal(temperatures[10:], temperatures[10])


@pytest.mark.parametrize("make", FALLING)
def test_temperatures_may_rise(make):
    temperatures = temperatures_of(make(0.5, 2.0, 11), 11)
    assert (jnp.diff(temperatures) > 0).all() and float(temperatures[10]) == pytest.approx(2.0)


@pytest.mark.parametrize("make", FALLING)
@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_schedule_of_one_step_has_its_start(make, num_steps):
    assert float(make(2.0, 0.5, num_steps)(jnp.int32(0))) == 2.0


def test_schedules_follow_their_formulas():
    steps = np.arange(9)
    np.testing.assert_allclose(temperatures_of(geometric_schedule(2.0, 0.5, 9), 9), 2 * 0.25 ** (steps / 8), 1e-5)
    np.testing.assert_allclose(temperatures_of(linear_schedule(2.0, 0.5, 9), 9), 2 - 1.5 * steps / 8, 1e-5)
    cosine = 0.5 + 0.75 * (1 + np.cos(np.pi * steps / 8))
    np.testing.assert_allclose(temperatures_of(cosine_schedule(2.0, 0.5, 9), 9), cosine, 1e-5)
    logarithmic = 2 * math.log(2) / np.log(2 + steps)
    np.testing.assert_allclose(temperatures_of(logarithmic_schedule(2.0), 9), logarithmic, 1e-5)
    np.testing.assert_array_equal(temperatures_of(constant_schedule(2.0), 9), 2.0)


def test_temperatures_may_be_traced():
    """A traced temperature has no value yet, so its range is not checked."""
    both = jax.jit(lambda start: (constant_schedule(start)(3), geometric_schedule(start, start / 4, 3)(1)))(2.0)
    assert [float(temperature) for temperature in both] == [2.0, 1.0]


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan, np.float32(-1.0)])
@pytest.mark.parametrize(
    "make",
    [
        constant_schedule,
        lambda temperature: linear_schedule(1.0, temperature, 10),
        lambda temperature: cosine_schedule(temperature, 1.0, 10),
        logarithmic_schedule,
    ],
)
def test_temperatures_below_0_or_not_finite_are_refused(make, temperature):
    with pytest.raises(InputError, match=f"temperature must be finite and at least 0, not {temperature}"):
        make(temperature)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_geometric_schedule_needs_temperatures_above_0(start, end):
    with pytest.raises(InputError, match="temperature must be finite and above 0 for a geometric schedule, not"):
        geometric_schedule(start, end, 10)


def test_calibration_has_the_units_of_the_energy():
    def move(rng_key, x):
        return x + jax.random.normal(rng_key)

    start, end = calibrate(jax.random.key(0), from_energy(lambda x: 3 * jnp.abs(x), move), 100.0)
    # Energy changes are normal with standard deviation 3. The median of their absolute values is 0.6745 * 3.
    assert float(start) == pytest.approx(0.25 * 3 * 0.6745, rel=0.1)
    assert float(end) == pytest.approx(float(start) / 100)
    scaled, _ = calibrate(jax.random.key(0), from_energy(lambda x: 3e5 * jnp.abs(x), move), 100.0)
    assert float(scaled) == pytest.approx(1e5 * float(start), rel=1e-4)
    flat = calibrate(jax.random.key(0), from_energy(lambda x: 0 * x, move), 1.0)
    assert [float(t) for t in flat] == [0.0, 0.0]


def test_calibration_takes_multiples_of_the_median_and_data():
    landscape = from_energy(lambda x, scale: scale * x, lambda rng_key, x: x + 2.0)
    start, end = calibrate(jax.random.key(0), landscape, 1.0, (3.0,), start=2.0, end=0.5)
    assert (float(start), float(end)) == (12.0, 3.0)
    assert start.dtype == end.dtype == jnp.float32 and start.shape == end.shape == ()


def test_calibration_leaves_out_changes_of_0_and_changes_that_are_not_finite():
    values = jnp.array([0.0, 0.0, jnp.nan, jnp.inf, 2.0])
    landscape = from_energy(lambda x: values[x], lambda rng_key, x: jax.random.randint(rng_key, (), 0, 5))
    assert float(calibrate(jax.random.key(0), landscape, 0, start=1.0)[0]) == 2.0


def test_calibration_leaves_out_proposals_to_stay():
    def propose(noise, state, temperature):
        stays = jax.random.bernoulli(noise, 0.8)
        return jnp.where(stays, 100.0, state.position + 1), jnp.where(stays, -jnp.inf, 0.0)

    landscape: Landscape = from_energy(lambda x: x, lambda rng_key, x: x)._replace(propose=propose)
    assert float(calibrate(jax.random.key(0), landscape, 1.0, start=1.0)[0]) == 1.0
