"""Temperature schedules, and temperatures calibrated from sampled energy changes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sa_jax
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
from sa_jax.annealing.chain import init, run
from sa_jax.annealing.schedules import CALIBRATION_MOVES, as_schedule, temperature_at
from tests.conftest import refusal
from tests.settings import strict, x64

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
    with pytest.raises(InputError, match=r"(start|end|temperature) must be a finite number of at least 0, not"):
        make(temperature)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_geometric_schedule_needs_temperatures_above_0(start, end):
    with pytest.raises(InputError, match=r"(start|end) must be a finite number above 0, not"):
        geometric_schedule(start, end, 10)


@pytest.mark.parametrize("make", FALLING)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, -10), "num_steps must be a whole number from 0 to 2147483647, not -10"),
        ((1.0, 0.1, 1e3), "num_steps must be a whole number from 0 to 2147483647, not 1000.0"),
        ((1.0, 0.1, None), "num_steps must be a whole number from 0 to 2147483647, not None"),
        (("hot", 0.1, 10), "start must be a finite number"),
        ((1.0, None, 10), "end must be a finite number"),
        ((jnp.ones(2), 0.1, 10), "start must be a finite number"),
    ],
)
def test_other_arguments_are_refused(make, arguments, message):
    with refusal(message):
        make(*arguments)


def test_a_traced_temperature_has_no_axes():
    with refusal("start must be a real scalar, not float32[2]"):
        jax.jit(lambda start: linear_schedule(start, 0.0, 10)(3))(jnp.ones(2))


@pytest.mark.parametrize("make", FALLING)
def test_the_number_of_steps_may_be_traced(make):
    assert jax.jit(lambda num_steps: make(2.0, 0.5, num_steps)(10))(11) == 0.5


def test_a_geometric_schedule_of_traced_zeros_is_greedy(rng_key):
    """All energies are equal, so `calibrate` finds no temperature."""
    landscape = from_energy(lambda x: 0 * x, lambda rng_key, x: x + jax.random.normal(rng_key))

    @jax.jit
    def solve(key):
        start, end = calibrate(key, landscape, 1.0)
        return sa_jax.anneal(key, landscape, 1.0, geometric_schedule(start, end, 100), 100, trace_every=10)

    result = solve(rng_key)
    assert not result.trace.temperature.any() and result.num_not_finite == 0 and result.num_accepted == 100


SCHEDULES = [*(partial(make, end=0.5, num_steps=11) for make in FALLING), constant_schedule, logarithmic_schedule]


@pytest.mark.parametrize("make", SCHEDULES)
def test_schedules_promote_nothing(make):
    """Temperatures and steps of all types, plain or traced, give the float32 that Python numbers give."""
    expected = float(jnp.asarray(make(2.0)(jnp.int32(3)), jnp.float32))
    with strict():
        for start in (2.0, 2, np.float32(2), np.float64(2), np.array(2.0), jnp.float32(2), jnp.int32(2)):
            assert make(start)(jnp.int32(3)) == expected
            traced = jax.jit(lambda start, step: make(start)(step))(start, 3)
            assert traced.dtype == jnp.float32 and traced == pytest.approx(expected, rel=1e-6)
        with x64(), strict():
            for start in (2.0, np.float64(2), jnp.float64(2)):
                temperature = make(start)(jnp.int64(3))
                assert temperature.dtype == jnp.float32 and temperature == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", SCHEDULES)
def test_schedules_are_hashable_pytrees_of_numbers(make):
    for one, other in ((2.0, jnp.float32(2)), (2, np.array(2.0))):
        assert make(one) == make(other) and hash(make(one)) == hash(make(other))
    assert make(2.0) != make(3.0) and jax.tree.structure(make(2.0)) == jax.tree.structure(make(3.0))
    assert {leaf.dtype for leaf in jax.tree.leaves(make(2.0))} == {np.dtype(np.float32)}
    assert jax.jit(lambda schedule: schedule(3))(make(2.0)) == pytest.approx(make(2.0)(3))


def test_the_last_temperature_is_exactly_the_end():
    """Under jit, where a division may become a product with a rounded reciprocal."""
    last = jax.jit(lambda schedule, step: schedule(step))
    for num_steps in range(2, 200):
        assert last(linear_schedule(1.0, 0.0, num_steps), num_steps - 1) == 0


def test_a_number_is_a_schedule_of_one_temperature():
    for number in (2, 2.5, np.float32(2.5), jnp.int8(2)):
        assert as_schedule(number)(7) == number
    schedule = geometric_schedule(1.0, 0.1, 10)
    assert as_schedule(schedule) is schedule
    for other in ("cold", None, jnp.ones(2), [1.0]):
        with refusal("schedule must be a number or a callable `step -> temperature`"):
            as_schedule(other)
    for value in (-1, math.nan, True):
        with refusal("temperature must be a finite number of at least 0, not"):
            as_schedule(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the value of schedule must be a real scalar, not None"),
        (jnp.ones(2), "the value of schedule must be a real scalar, not float32[2]"),
        (1j, "the value of schedule must be a real scalar, not complex"),
        (constant_schedule, "the value of schedule must be a real scalar, not function"),
        (-1.0, "schedule must return temperatures of at least 0, not -1.0"),
        (np.float64("nan"), "schedule must return temperatures of at least 0, not nan"),
    ],
)
def test_a_schedule_that_returns_no_temperature_is_refused(value, message, rng_key):
    landscape = from_energy(lambda x: x**2, lambda rng_key, x: -x)

    def schedule(step):
        return value

    for call in (
        lambda: temperature_at(schedule, 0),
        lambda: sa_jax.anneal(rng_key, landscape, 1.0, schedule, 100),
        lambda: jax.jit(lambda key: run(key, landscape, init(landscape, 1.0), schedule, 0, 100))(rng_key),
        lambda: sa_jax.tempering.population_anneal(rng_key, landscape, jnp.ones(4), schedule, 100),
    ):
        with refusal(message):
            call()


def test_temperatures_are_float32():
    for value in (1, 0.5, np.float64(0.5), jnp.bfloat16(0.5), jnp.inf, True):
        temperature = temperature_at(lambda step: value, 3)  # noqa: B023
        assert temperature.dtype == jnp.float32 and temperature == value


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


@pytest.mark.parametrize("values", [[2.0, 5.0, 3.0], [2.0, 5.0, 3.0, 8.0], [7.0], [0.0, 0.0], [math.nan, 4.0]])
def test_calibration_takes_the_median(values):
    changes = jnp.array(values)
    landscape: Landscape = from_energy(lambda x: 0.0, lambda rng_key, x: x)._replace(
        draw=lambda rng_key: jax.random.randint(rng_key, (), 0, changes.size),
        propose=lambda noise, state, temperature: (noise, jnp.float32(0)),
        delta=lambda state, move, data: (changes[move], None),
    )
    drawn = jax.vmap(landscape.draw)(jax.random.split(jax.random.key(1), CALIBRATION_MOVES))
    counted = changes[drawn][jnp.isfinite(changes[drawn]) & (changes[drawn] > 0)]
    expected = jnp.median(counted) if counted.size else 0
    with jax.debug_nans("nan" not in str(values)):
        assert calibrate(jax.random.key(1), landscape, 1.0, start=1.0)[0] == expected


@pytest.mark.parametrize("multiple", [-1.0, math.nan, "hot", None])
def test_multiples_below_0_or_not_finite_are_refused(multiple):
    landscape = from_energy(lambda x: x**2, lambda rng_key, x: -x)
    with refusal("start must be a finite number of at least 0, not"):
        calibrate(jax.random.key(0), landscape, 1.0, start=multiple)
    with refusal("end must be a finite number of at least 0, not"):
        calibrate(jax.random.key(0), landscape, 1.0, end=multiple)


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
