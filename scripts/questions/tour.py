"""What a generic chain costs beside a scan written by hand: the tour of the README, measuring, sentence."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from sa_jax import anneal, from_energy, geometric_schedule

from .timing import ROUNDS, take_turns, use_one_core

STEPS, BLOCK = 50_000, 100


def length(tour: jax.Array, cities: jax.Array) -> jax.Array:
    """The length of a closed tour, `[]`."""
    return jnp.linalg.norm(cities[tour] - cities[jnp.roll(tour, 1)], axis=1).sum()


def swap_two(rng_key: jax.Array, tour: jax.Array) -> jax.Array:
    """The tour with two cities swapped."""
    i, j = jax.random.randint(rng_key, (2,), 0, tour.size)
    return tour.at[i].set(tour[j]).at[j].set(tour[i])


def annealed(rng_key: jax.Array, cities: jax.Array) -> jax.Array:
    """The lowest length that `anneal` finds, called as in the README; the first call compiles."""
    landscape, schedule = from_energy(length, swap_two), geometric_schedule(0.3, 0.003, STEPS)
    start = jnp.arange(len(cities))
    return anneal(rng_key, landscape, start, schedule, STEPS, data=(cities,)).best_energy


@jax.jit
def by_hand(rng_key: jax.Array, cities: jax.Array) -> jax.Array:
    """The lowest length that a scan finds, which draws the random numbers of `BLOCK` steps at once."""

    def step(carry, inputs):
        tour, energy, best, best_energy = carry
        (i, j), log_u, temperature = inputs
        moved = tour.at[i].set(tour[j]).at[j].set(tour[i])
        new = length(moved, cities)
        accepted = log_u < (energy - new) / temperature
        tour, energy = jnp.where(accepted, moved, tour), jnp.where(accepted, new, energy)
        best = jnp.where(energy < best_energy, tour, best)
        return (tour, energy, best, jnp.minimum(energy, best_energy)), None

    def block(carry, number):
        pair_key, accept_key = jax.random.split(jax.random.fold_in(rng_key, number))
        pairs = jax.random.randint(pair_key, (BLOCK, 2), 0, len(cities))
        log_u = -jax.random.exponential(accept_key, (BLOCK,))
        steps = number * BLOCK + jnp.arange(BLOCK)
        temperature = 0.3 * (0.003 / 0.3) ** (steps / STEPS)
        return jax.lax.scan(step, carry, (pairs, log_u, temperature))[0], None

    tour = jnp.arange(len(cities))
    start = tour, length(tour, cities), tour, length(tour, cities)
    return jax.lax.scan(block, start, jnp.arange(STEPS // BLOCK))[0][3]


def measure() -> dict[str, Any]:
    """CPU time of a step of the two, in turns on one core."""
    use_one_core()
    cities = jax.random.uniform(jax.random.key(0), (30, 2))
    first = time.process_time()
    annealed(jax.random.key(1), cities).block_until_ready()
    first = time.process_time() - first
    calls = {name: lambda call=call: call(jax.random.key(1), cities) for name, call in CALLS.items()}
    seconds = take_turns(calls, time.process_time)
    microseconds = {name: 1e6 * statistics.median(times) / STEPS for name, times in seconds.items()}
    ratios = [one / other for one, other in zip(seconds["anneal"], seconds["by hand"], strict=True)]
    lengths = {name: float(call()) for name, call in calls.items()}
    return {
        "steps": STEPS,
        "rounds": ROUNDS,
        "microseconds": microseconds,
        "milliseconds": {"first call": 1e3 * first, "later calls": microseconds["anneal"] * STEPS / 1e3},
        "ratio": statistics.median(ratios),
        "lengths": lengths,
    }


CALLS = {"anneal": annealed, "by hand": by_hand}


def sentence(result: dict[str, Any]) -> str:
    """Both times and their ratio."""
    anneal_time, hand_time = (result["microseconds"][name] for name in CALLS)
    first, later = result["milliseconds"].values()
    machine = result["machine"]
    return (
        f"A step of `anneal` on the README's tour of 30 cities takes {anneal_time:.2f} microseconds of CPU time, "
        f"and a step of a scan written by hand {hand_time:.2f}: a ratio of {result['ratio']:.2f}, the median of "
        f"{result['rounds']} rounds in turns (one core of {machine['processor']}, jax "
        f"{machine['versions']['jax']}). The first call, which compiles, takes {first:,.0f} milliseconds of CPU "
        f"time. A later call takes {later:.0f}, also with the landscape and the schedule made again."
    )
