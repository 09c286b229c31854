"""Temperature schedules `step -> temperature`, and calibration of temperatures from sampled energy changes.

Any callable can be a schedule, for example a schedule of optax. Steps count from 0. Temperatures are in units of
the energy.
"""

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sa_jax.types import InputError, Landscape, PyTree, Scalar, Schedule

# Number of moves that `calibrate` samples.
CALIBRATION_MOVES = 1000
# Start and end temperature that `calibrate` returns, as multiples of the median absolute energy change.
START_SHARE, END_SHARE = 0.25, 0.0025


def constant_schedule(temperature: Scalar) -> Schedule:
    """Returns a schedule of constant temperature.

    Raises:
      InputError: the temperature is not finite, or is negative.

    >>> constant_schedule(0.5)(7)
    Array(0.5, dtype=float32)
    """
    _check(temperature)
    return lambda step: jnp.asarray(temperature, jnp.float32)


def geometric_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that multiplies the temperature by a constant factor in each step.

    This is the usual choice (Kirkpatrick, Gelatt & Vecchi 1983). The temperature is `start` at step 0, `end` at
    step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not finite, or is not above 0.

    >>> [round(float(geometric_schedule(1.0, 0.01, 3)(step)), 4) for step in range(4)]
    [1.0, 0.1, 0.01, 0.01]
    """
    _check(start, end, positive="geometric")
    return lambda step: start * (end / start) ** _progress(step, num_steps)


def linear_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that changes the temperature by a constant amount in each step.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not finite, or is negative.

    >>> [float(linear_schedule(1.0, 0.0, 3)(step)) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check(start, end)
    return lambda step: start + (end - start) * _progress(step, num_steps)


def cosine_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Returns a schedule that follows half a period of a cosine.

    The temperature is `start` at step 0, `end` at step `num_steps - 1`, and stays at `end` after that.

    Raises:
      InputError: a temperature is not finite, or is negative.

    >>> [round(float(cosine_schedule(1.0, 0.0, 3)(step)), 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check(start, end)
    return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, num_steps)))


def logarithmic_schedule(start: Scalar) -> Schedule:
    """Returns the logarithmic schedule, `start * log(2) / log(2 + step)`.

    With it, annealing provably finds the optimum if `start * log(2)` is at least the depth of the deepest local
    minimum that is not the global one (Geman & Geman 1984, Hajek 1988). It is far too slow for most budgets.

    Raises:
      InputError: the temperature is not finite, or is negative.

    >>> [round(float(logarithmic_schedule(1.0)(step)), 4) for step in (0, 2, 14)]
    [1.0, 0.5, 0.25]
    """
    _check(start)
    return lambda step: start * math.log(2) / jnp.log(2.0 + step)


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
    """
    state = landscape.init(position, data)

    def sample(rng_key):
        move, log_q_ratio = landscape.propose(landscape.draw(rng_key), state, jnp.zeros(()))
        return jnp.where(log_q_ratio > -jnp.inf, landscape.delta(state, move, data)[0], 0)

    changes = jnp.abs(jax.lax.map(sample, jax.random.split(rng_key, CALIBRATION_MOVES)))
    typical = jnp.nanmedian(jnp.where(jnp.isfinite(changes) & (changes > 0), changes, jnp.nan))
    typical = jnp.nan_to_num(typical.astype(jnp.float32))
    return start * typical, end * typical


def _progress(step, num_steps):
    return jnp.clip(step / jnp.maximum(num_steps - 1, 1), 0.0, 1.0)


def _check(*temperatures: Scalar, positive: str = "") -> None:
    for temperature in temperatures:
        if isinstance(temperature, Tracer):
            continue
        if not (math.isfinite(temperature) and (temperature > 0 if positive else temperature >= 0)):
            bound = f"above 0 for a {positive} schedule" if positive else "at least 0"
            raise InputError(f"temperature must be finite and {bound}, not {temperature}")
