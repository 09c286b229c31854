"""Temperature schedules `step -> temperature`, and calibration of temperatures from sampled energy changes.

Any callable can be a schedule, for example a schedule of optax. Steps count from 0. Temperatures are in units of
the energy.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.inputs import (
    MOST_STEPS,
    as_data,
    as_position,
    as_scalar,
    check_key,
    check_landscape,
    check_takes,
)
from sa_jax.checks import number, whole
from sa_jax.types import InputError, Landscape, PyTree, Scalar, Schedule

# Number of moves that `calibrate` samples.
CALIBRATION_MOVES = 1000
# Start and end temperature that `calibrate` returns, as multiples of the median absolute energy change.
START_SHARE, END_SHARE = 0.25, 0.0025


def constant_schedule(temperature: Scalar) -> Schedule:
    """Returns a schedule of constant temperature.

    Raises:
      InputError: the temperature is not a finite number of at least 0.

    >>> constant_schedule(0.5)(7)
    Array(0.5, dtype=float32)
    """
    temperature = _temperature("temperature", temperature)
    return lambda step: jnp.asarray(temperature, jnp.float32)


def geometric_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that multiplies the temperature by a constant factor in each step.

    This is the usual choice (Kirkpatrick, Gelatt & Vecchi 1983). The temperature is `start` at step 0, `end` at
    step `num_steps - 1`, and stays at `end` after that. With a traced `start` of 0, all temperatures are 0.

    Raises:
      InputError: a temperature is not a finite number above 0, or `num_steps` is not a whole number of at least 0.

    >>> [round(float(geometric_schedule(1.0, 0.01, 3)(step)), 4) for step in range(4)]
    [1.0, 0.1, 0.01, 0.01]
    """
    start, end = _temperature("start", start, above=0), _temperature("end", end, above=0)
    num_steps = _num_steps(num_steps)
    # A traced temperature may be 0: `calibrate` returns 0 if all energies are equal. Then the chain is greedy.
    ratio = end / (start if isinstance(start, float) else jnp.where(start > 0, start, 1.0))
    return lambda step: start * ratio ** _progress(step, num_steps)


def linear_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that changes the temperature by a constant amount in each step.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not a finite number of at least 0, or `num_steps` is not a whole number of at
        least 0.

    >>> [float(linear_schedule(1.0, 0.0, 3)(step)) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    start, end, num_steps = _temperature("start", start), _temperature("end", end), _num_steps(num_steps)
    return lambda step: start + (end - start) * _progress(step, num_steps)


def cosine_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that follows half a period of a cosine.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not a finite number of at least 0, or `num_steps` is not a whole number of at
        least 0.

    >>> [round(float(cosine_schedule(1.0, 0.0, 3)(step)), 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    start, end, num_steps = _temperature("start", start), _temperature("end", end), _num_steps(num_steps)
    return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, num_steps)))


def logarithmic_schedule(start: Scalar) -> Schedule:
    """Returns the logarithmic schedule, `start * log(2) / log(2 + step)`.

    With it, annealing provably finds the optimum if `start * log(2)` is at least the depth of the deepest local
    minimum that is not the global one (Geman & Geman 1984, Hajek 1988). It is far too slow for most budgets.

    Raises:
      InputError: the temperature is not a finite number of at least 0.

    >>> [round(float(logarithmic_schedule(1.0)(step)), 4) for step in (0, 2, 14)]
    [1.0, 0.5, 0.25]
    """
    start = _temperature("start", start)
    return lambda step: start * math.log(2) / jnp.log(2.0 + jnp.asarray(step, jnp.float32))


def as_schedule(schedule: Schedule | float) -> Schedule:
    """Returns a schedule as it is, and a number as a schedule of constant temperature.

    Raises:
      InputError: the schedule is neither a number nor a function of the step, or the number is not finite or is
        negative.
    """
    if callable(schedule):
        check_takes("schedule", schedule, "(step)", 1)
        return schedule
    if not isinstance(schedule, jax.Array | np.ndarray | np.generic | int | float) or jnp.ndim(schedule) != 0:
        raise InputError("schedule must be a number or a callable `step -> temperature`")
    return constant_schedule(schedule)


def temperature_at(schedule: Schedule, step: jax.Array | int) -> jax.Array:
    """Returns the temperature at a step, float32 `[]`, after checking what can be checked before the step is made.

    Args:
      schedule: `step -> temperature`.
      step: int32 `[]`.

    Raises:
      InputError: the schedule does not return a real scalar, or it returns a plain number that is NaN or negative.
    """
    value = schedule(jnp.asarray(step, jnp.int32))
    temperature = as_scalar("the value of schedule", value)
    if not isinstance(value, jax.Array) and not value >= 0:
        raise InputError(f"schedule must return temperatures of at least 0, not {value}")
    return temperature.astype(jnp.float32)


def calibrate(
    rng_key: jax.Array,
    landscape: Landscape,
    position: PyTree,
    data: tuple = (),
    start: float = START_SHARE,
    end: float = END_SHARE,
) -> tuple[jax.Array, jax.Array]:
    """Chooses a start and an end temperature from the energy changes of sampled moves.

    Samples `CALIBRATION_MOVES` moves from `position`. Temperatures have the units of the energy, so the result
    fits an energy in any units. The defaults suit a good initial position, which a hot start would destroy. For a
    random initial position, use a `start` of 1 or more.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to anneal on.
      position: initial position.
      data: arrays that are passed to the landscape.
      start: start temperature, as a multiple of the median absolute energy change. Changes of 0 are left out.
      end: end temperature, as a multiple of the same median.

    Returns:
      `(start, end)`, both float32 `[]`. Both are 0 if no sampled move changes the energy.

    Raises:
      InputError: `start` or `end` is not a finite number of at least 0, `rng_key` is not one key, a leaf of the
        position is not an array, or `data` is not a tuple.
    """
    check_key(rng_key)
    check_landscape(landscape)
    shares, data = (_temperature("start", start), _temperature("end", end)), as_data(data)
    state = landscape.init(as_position(position), data)

    def sample(rng_key):
        move, log_q_ratio = landscape.propose(landscape.draw(rng_key), state, jnp.zeros((), jnp.float32))
        return jnp.where(log_q_ratio > -jnp.inf, landscape.delta(state, move, data)[0], 0)

    changes = jnp.abs(jax.lax.map(sample, jax.random.split(rng_key, CALIBRATION_MOVES)))
    typical = _median_of_finite(jnp.where(changes > 0, changes, jnp.inf)).astype(jnp.float32)
    return shares[0] * typical, shares[1] * typical


def _median_of_finite(values):
    """The median of the values that are finite; 0 if there are none. Unlike `jnp.nanmedian` it computes no NaN."""
    values = jnp.sort(jnp.where(jnp.isfinite(values), values, jnp.inf))
    count = jnp.isfinite(values).sum()
    middle = 0.5 * values[jnp.maximum(count - 1, 0) // 2] + 0.5 * values[count // 2]
    return jnp.where(count > 0, middle, 0)


def _progress(step, num_steps):
    """The share of the steps that were made, float32 `[]`, from 0 to 1."""
    last = jnp.maximum(num_steps - 1, 1).astype(jnp.float32)
    return jnp.clip(jnp.asarray(step, jnp.float32) / last, 0.0, 1.0)


def _num_steps(num_steps: int) -> int:
    """The number, after checking it unless it is traced."""
    return num_steps if isinstance(num_steps, Tracer) else whole("num_steps", num_steps, most=MOST_STEPS)


def _temperature(name: str, value: Scalar, above: float | None = None) -> Scalar:
    """The value as a float or as float32 `[]`, after checking its range unless it is traced."""
    if isinstance(value, Tracer):
        return as_scalar(name, value).astype(jnp.float32)
    checked = number(name, value, above=above, least=0 if above is None else None)
    # A float stays one until it meets a float32, so that `end / start` is rounded once.
    return float(checked) if isinstance(value, int | float | np.ndarray) else jnp.asarray(value, jnp.float32)
