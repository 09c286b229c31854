"""Temperature schedules `step -> temperature`, and calibration of temperatures from sampled energy changes.

Any callable can be a schedule, for example a schedule of optax. Steps count from 0. Temperatures are in units of
the energy. The schedules made here are pytrees, whose leaves are their numbers: a program compiled for one of them
serves for other temperatures too.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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
from sa_jax.annealing.programs import call_compiled
from sa_jax.checks import number, whole
from sa_jax.types import InputError, Landscape, PyTree, Scalar, Schedule

# Number of moves that `calibrate` samples.
CALIBRATION_MOVES = 1000
# Start and end temperature that `calibrate` returns, as multiples of the median absolute energy change.
START_SHARE, END_SHARE = 0.25, 0.0025


class _Progress(NamedTuple):
    """How the share of the steps that were made grows from 0 to 1.

    Attributes:
      last: the number of the last step, but at least 1.
      per_step: the growth in a step, `1 / last`. As a number of its own, because XLA computes a division by an
        argument of a program and one by a constant to different last bits.
    """

    last: Scalar  # float32 []
    per_step: Scalar  # float32 []

    def at(self, step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < self.last, jnp.maximum(step, 0.0) * self.per_step, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Constant:
    temperature: Scalar  # float32 []

    def __call__(self, step: jax.Array, /) -> jax.Array:
        del step
        return jnp.asarray(self.temperature)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Geometric:
    start: Scalar  # float32 []
    ratio: Scalar  # float32 []
    progress: _Progress

    def __call__(self, step: jax.Array, /) -> jax.Array:
        return self.start * jnp.asarray(self.ratio) ** self.progress.at(step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Linear:
    start: Scalar  # float32 []
    change: Scalar  # float32 []
    progress: _Progress

    def __call__(self, step: jax.Array, /) -> jax.Array:
        return self.start + self.change * self.progress.at(step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Cosine:
    end: Scalar  # float32 []
    half: Scalar  # float32 []
    progress: _Progress

    def __call__(self, step: jax.Array, /) -> jax.Array:
        return self.end + self.half * (1 + jnp.cos(jnp.pi * self.progress.at(step)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Logarithmic:
    scale: Scalar  # float32 []

    def __call__(self, step: jax.Array, /) -> jax.Array:
        return self.scale / jnp.log(2.0 + jnp.asarray(step, jnp.float32))


def constant_schedule(temperature: Scalar) -> Schedule:
    """Returns a schedule of constant temperature.

    Raises:
      InputError: the temperature is not a finite number of at least 0.

    >>> constant_schedule(0.5)(7)
    Array(0.5, dtype=float32)
    """
    return _Constant(_float32(_temperature("temperature", temperature)))


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
    # A traced temperature may be 0: `calibrate` returns 0 if all energies are equal. Then the chain is greedy.
    ratio = end / (jnp.where(start > 0, start, 1.0) if isinstance(start, Tracer) else start)
    return _Geometric(_float32(start), _float32(ratio), _progress(num_steps))


def linear_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that changes the temperature by a constant amount in each step.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not a finite number of at least 0, or `num_steps` is not a whole number of at
        least 0.

    >>> [float(linear_schedule(1.0, 0.0, 3)(step)) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    start, end = _temperature("start", start), _temperature("end", end)
    return _Linear(_float32(start), _float32(end - start), _progress(num_steps))


def cosine_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that follows half a period of a cosine.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not a finite number of at least 0, or `num_steps` is not a whole number of at
        least 0.

    >>> [round(float(cosine_schedule(1.0, 0.0, 3)(step)), 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    start, end = _temperature("start", start), _temperature("end", end)
    return _Cosine(_float32(end), _float32((start - end) * 0.5), _progress(num_steps))


def logarithmic_schedule(start: Scalar) -> Schedule:
    """Returns the logarithmic schedule, `start * log(2) / log(2 + step)`.

    With it, annealing provably finds the optimum if `start * log(2)` is at least the depth of the deepest local
    minimum that is not the global one (Geman & Geman 1984, Hajek 1988). It is far too slow for most budgets.

    Raises:
      InputError: the temperature is not a finite number of at least 0.

    >>> [round(float(logarithmic_schedule(1.0)(step)), 4) for step in (0, 2, 14)]
    [1.0, 0.5, 0.25]
    """
    return _Logarithmic(_float32(_temperature("start", start) * math.log(2)))


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
    shares = _float32(_temperature("start", start)), _float32(_temperature("end", end))
    return call_compiled(partial(_calibrated, landscape), rng_key, as_position(position), as_data(data), shares)


def _calibrated(landscape, rng_key, position, data, shares):
    state = landscape.init(position, data)

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


def _progress(num_steps: int) -> _Progress:
    """How a schedule of a number of steps progresses, after checking the number unless it is traced."""
    if isinstance(num_steps, Tracer):
        last = jnp.maximum(num_steps - 1, 1).astype(jnp.float32)
    else:
        last = np.float32(max(whole("num_steps", num_steps, most=MOST_STEPS) - 1, 1))
    return _Progress(last, 1 / last)


def _temperature(name: str, value: Scalar, above: float | None = None) -> Scalar:
    """The value as a float or as float32 `[]`, after checking its range unless it is traced."""
    if isinstance(value, Tracer):
        return as_scalar(name, value).astype(jnp.float32)
    checked = number(name, value, above=above, least=0 if above is None else None)
    # A float stays one until it becomes a leaf of a schedule, so that `end / start` is rounded once.
    return float(checked) if isinstance(value, int | float | np.ndarray) else np.float32(checked)


def _float32(value: Scalar) -> Scalar:
    return value if isinstance(value, Tracer) else np.float32(value)
