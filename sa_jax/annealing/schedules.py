"""Temperature schedules `step -> temperature`, and temperatures calibrated from sampled energy changes.

Any callable will do, the schedules of optax among them. Steps count from 0; temperatures are in units of
the energy.
"""

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sa_jax.types import InputError, Landscape, PyTree, Scalar, Schedule

# Energy changes sampled by `calibrate`.
CALIBRATION_MOVES = 1000
# Temperatures that it chooses, in units of their median size.
START_SHARE, END_SHARE = 0.25, 0.0025


def constant_schedule(temperature: Scalar) -> Schedule:
    """The same temperature throughout.

    >>> constant_schedule(0.5)(7)
    Array(0.5, dtype=float32)
    """
    _check(temperature)
    return lambda step: jnp.asarray(temperature, jnp.float32)


def geometric_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Falls by a constant factor per step from `start` at step 0 to `end` at `num_steps - 1`, then stays.

    Kirkpatrick, Gelatt & Vecchi 1983; the usual choice.

    >>> [round(float(geometric_schedule(1.0, 0.01, 3)(step)), 4) for step in range(4)]
    [1.0, 0.1, 0.01, 0.01]
    """
    _check(start, end, positive="geometric")
    return lambda step: start * (end / start) ** _progress(step, num_steps)


def linear_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Falls by a constant amount per step from `start` at step 0 to `end` at `num_steps - 1`, then stays.

    >>> [float(linear_schedule(1.0, 0.0, 3)(step)) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check(start, end)
    return lambda step: start + (end - start) * _progress(step, num_steps)


def cosine_schedule(start: Scalar, end: Scalar, num_steps: int) -> Schedule:
    """Half a cosine from `start` at step 0 to `end` at `num_steps - 1`, then stays.

    >>> [round(float(cosine_schedule(1.0, 0.0, 3)(step)), 4) for step in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check(start, end)
    return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, num_steps)))


def logarithmic_schedule(start: Scalar) -> Schedule:
    """`start * log(2) / log(2 + step)`, the law under which annealing provably finds the optimum.

    Geman & Geman 1984, Hajek 1988: with `start` above the depth of the deepest local minimum over log(2).
    Far too slow for most budgets.

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

    Samples `CALIBRATION_MOVES` moves from `position`, so that the temperatures have the energy's units
    whatever they are. The defaults suit a good initial position, which a hot start would only destroy; from
    a random one take a `start` of 1 or more.

    Args:
      rng_key: a key, `[]`.
      landscape: what will be annealed.
      position: initial position.
      data: passed on to the landscape.
      start: start temperature, in units of the median size of the changes that are not 0.
      end: end temperature, likewise.

    Returns:
      `(start, end)`, float32 `[]` each; both 0 when no sampled move changes the energy.
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
