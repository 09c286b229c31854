"""Many chains that help each other: replica exchange and population annealing, on the steps of `anneal`.

Swendsen & Wang 1986 and Hukushima & Nemoto 1996 for replica exchange; Hukushima & Iba 2003 and Machta 2010 for
population annealing.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.chain import BLOCK_STEPS, as_arrays, init, match_varying, run
from sa_jax.annealing.schedules import constant_schedule
from sa_jax.types import AnnealState, InputError, Landscape, PyTree, Schedule

# Share of exchanges that an adapted ladder aims at (0.23 is best where energies are Gaussian; Kone & Kofke 2005).
EXCHANGE_SHARE = 0.25
# How much the logarithm of a gap moves, times what the share is off, at the first adaptation; then ever less, in
# proportion to 1 / (n + 4) after n, so that it settles (Robbins & Monro 1951).
FIRST_ADAPTATION = 0.5
# A gap is never wider, as a ratio of temperatures: where energies are bounded no gap may be wide enough.
WIDEST_GAP = 100.0


class TemperResult(NamedTuple):
    """What `temper` returns; rungs are in the order of the temperatures.

    Attributes:
      best: the position of the lowest energy that any replica met.
      best_energy: its energy, float32 `[]`.
      final: positions after the last step, leading axis `[rungs]`.
      final_energy: float32 `[rungs]`.
      temperatures: the ladder, adapted or as given, float32 `[rungs]`.
      exchange_share: of the exchanges between each rung and the next, since the ladder was fixed, float32
        `[rungs - 1]`; NaN where none was tried.
      num_accepted: proposals that each replica accepted, wherever it was, int32 `[rungs]`.
      round_trips: how often each replica went from the first rung to the last and back, from the first step on,
        int32 `[rungs]`.
    """

    best: PyTree
    best_energy: jax.Array  # float32 []
    final: PyTree
    final_energy: jax.Array  # float32 [rungs]
    temperatures: jax.Array  # float32 [rungs]
    exchange_share: jax.Array  # float32 [rungs - 1]
    num_accepted: jax.Array  # int32 [rungs]
    round_trips: jax.Array  # int32 [rungs]


class Replicas(NamedTuple):
    """All replicas between two blocks of steps; a replica keeps its state and changes its rung.

    Attributes:
      chains: an `AnnealState` with leading axis `[rungs]`, or of those of one device.
      rung: where each replica is, int32 `[rungs]`.
      log_temperatures: of each rung, float32 `[rungs]`.
      tried: exchanges tried between each rung and the next since the ladder was fixed, int32 `[rungs - 1]`.
      exchanged: those accepted, int32 `[rungs - 1]`.
      chance: of the latest exchange tried between each rung and the next, float32 `[rungs - 1]`.
      heading: of each replica, -1 after it was at the first rung, 1 after it then was at the last, 0 before, int32
        `[rungs]`.
      round_trips: see `TemperResult`.
    """

    chains: AnnealState
    rung: jax.Array  # int32 [rungs]
    log_temperatures: jax.Array  # float32 [rungs]
    tried: jax.Array  # int32 [rungs - 1]
    exchanged: jax.Array  # int32 [rungs - 1]
    chance: jax.Array  # float32 [rungs - 1]
    heading: jax.Array  # int32 [rungs]
    round_trips: jax.Array  # int32 [rungs]


def temper(
    rng_key: jax.Array,
    landscape: Landscape,
    position: PyTree,
    temperatures: jax.Array,
    num_steps: int,
    data: tuple = (),
    adapt_steps: int = 0,
    chain_batch: int | None = None,
    axis_name: str | None = None,
) -> TemperResult:
    """Replica exchange: one chain at each temperature, and neighbours that exchange their temperatures. Pure.

    After every `anneal.BLOCK_STEPS` steps the replicas at neighbouring temperatures, every other pair in turn,
    exchange them with probability `min(1, exp((1 / T_i - 1 / T_j) * (E_i - E_j)))`. With a fixed ladder, each
    rung samples the Boltzmann distribution of its temperature.

    Args:
      rng_key: a key, `[]`.
      landscape: what to walk on.
      position: initial position of all replicas.
      temperatures: rising, above 0, float `[rungs]`, at least 2; `jnp.geomspace(low, high, rungs)` is usual.
      num_steps: proposals of each replica, rounded up to whole blocks; static.
      data: passed on to the landscape.
      adapt_steps: of these, so many during which all temperatures but the first move until neighbours exchange
        a share `EXCHANGE_SHARE` of the times; static. Afterwards the ladder is fixed.
      chain_batch: replicas vmapped together, 1 on a CPU; None for all. Static.
      axis_name: inside `shard_map`, the axis of the mesh over which the replicas are spread, on any number of
        devices and processes; energies alone are exchanged, once per block. Needs `check_vma=False`. Static.

    Returns:
      A `TemperResult`, on every device the same.

    Raises:
      InputError: fewer than two temperatures, temperatures that do not rise, are not above 0, or do not divide
        over the devices, or more `adapt_steps` than steps.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import from_energy
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> ladder = jnp.geomspace(0.05, 5, 4)
    >>> result = temper(jax.random.key(0), from_energy(energy, move), 0.0, ladder, 1_000)
    >>> round(float(result.best), 1)
    7.8
    """
    shape = jnp.shape(temperatures)
    if len(shape) != 1 or shape[0] < 2:
        raise InputError(f"temperatures must have the shape [rungs], at least 2, not {list(shape)}")
    if not isinstance(temperatures, Tracer):
        values = np.asarray(temperatures)
        if not (np.all(np.diff(values) > 0) and np.isfinite(values).all() and values[0] > 0):
            raise InputError(f"temperatures must rise, from above 0, not {values.tolist()}")
    temperatures = jnp.asarray(temperatures, jnp.float32)
    if not 0 <= adapt_steps <= num_steps:
        raise InputError(f"adapt_steps must be from 0 to num_steps, {num_steps}, not {adapt_steps}")
    rungs, data = temperatures.size, as_arrays(data)
    chains_key, exchange_key = jax.random.split(rng_key)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if rungs % devices:
        raise InputError(f"{rungs} temperatures do not divide over {devices} devices")
    here = jnp.arange(rungs // devices)
    if axis_name is not None:
        here += jax.lax.axis_index(axis_name) * here.size

    def everywhere(tree):
        """All replicas' values, from those of this device."""
        return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)

    keys = jax.vmap(partial(jax.random.fold_in, chains_key))(here)
    start = init(landscape, position, data)
    none = jnp.zeros(rungs, jnp.int32)
    replicas = Replicas(
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (here.size, *leaf.shape)), start),
        jnp.arange(rungs, dtype=jnp.int32),
        jnp.log(temperatures),
        none[1:],
        none[1:],
        jnp.full(rungs - 1, EXCHANGE_SHARE, jnp.float32),
        none.at[0].set(-1),
        none,
    )
    replicas = match_varying(replicas, rng_key, start.best_energy, temperatures)
    adapted_blocks = 2 * -(-adapt_steps // (2 * BLOCK_STEPS))

    def block(replicas, number):
        def walk(chain):
            key, state, temperature = chain
            return run(
                key, landscape, state, constant_schedule(temperature), number * BLOCK_STEPS, BLOCK_STEPS, data
            )[0]

        own = jnp.exp(replicas.log_temperatures)[replicas.rung[here]]
        chains = _map(walk, (keys, replicas.chains, own), chain_batch)
        replicas, energies = replicas._replace(chains=chains), everywhere(chains.walk.energy)
        replicas = _exchange(jax.random.fold_in(exchange_key, number), replicas, energies, number)
        # Every other pair is tried in a block, all in two.
        adapts = (number < adapted_blocks) & (number % 2 == 1)
        rate = FIRST_ADAPTATION / (1 + number // 8)
        gaps = jnp.diff(replicas.log_temperatures) * jnp.exp(rate * (replicas.chance - EXCHANGE_SHARE))
        gaps = jnp.minimum(gaps, math.log(WIDEST_GAP))
        ladder = replicas.log_temperatures[0] + jnp.pad(jnp.cumsum(gaps), (1, 0))
        return replicas._replace(
            log_temperatures=jnp.where(adapts, ladder, replicas.log_temperatures),
            tried=jnp.where(adapts, 0, replicas.tried),
            exchanged=jnp.where(adapts, 0, replicas.exchanged),
        ), None

    replicas, _ = jax.lax.scan(block, replicas, jnp.arange(-(-num_steps // BLOCK_STEPS), dtype=jnp.int32))
    chains = replicas.chains
    found = chains.best, chains.best_energy, chains.walk.position, chains.walk.energy, chains.num_accepted
    best, best_energy, final, final_energy, num_accepted = everywhere(found)
    winner = best_energy.argmin()
    at = jnp.argsort(replicas.rung)
    return TemperResult(
        jax.tree.map(lambda leaf: leaf[winner], best),
        best_energy[winner],
        jax.tree.map(lambda leaf: leaf[at], final),
        final_energy[at],
        jnp.exp(replicas.log_temperatures),
        jnp.where(replicas.tried > 0, replicas.exchanged / replicas.tried, jnp.nan),
        num_accepted,
        replicas.round_trips,
    )


class PopulationResult(NamedTuple):
    """What `population_anneal` returns.

    Attributes:
      best: the position of the lowest energy that any member met.
      best_energy: its energy, float32 `[]`.
      final: positions after the last step, leading axis `[members]`.
      final_energy: float32 `[members]`.
      family: the member of the first population from which each descends, int32 `[members]`.
      mean_square_family_size: `members * sum((family size / members)**2)`, float32 `[]`: far below the number of
        members where the population was large enough (Wang, Machta & Katzgraber 2015).
      num_accepted: accepted proposals of each member and its ancestors, int32 `[members]`.
    """

    best: PyTree
    best_energy: jax.Array  # float32 []
    final: PyTree
    final_energy: jax.Array  # float32 [members]
    family: jax.Array  # int32 [members]
    mean_square_family_size: jax.Array  # float32 []
    num_accepted: jax.Array  # int32 [members]


def population_anneal(
    rng_key: jax.Array,
    landscape: Landscape,
    positions: PyTree,
    schedule: Schedule,
    num_steps: int,
    data: tuple = (),
    chain_batch: int | None = None,
) -> PopulationResult:
    """Population annealing: chains that cool together and are resampled as they do. Pure.

    After every `anneal.BLOCK_STEPS` steps at one temperature, `T`, members are copied or dropped in proportion to
    `exp(-(1 / T' - 1 / T) * E)`, with `T'` that of the steps to come; their number stays (systematic resampling;
    Douc & Cappe 2005). So a large population keeps to the Boltzmann distribution as it cools.

    Args:
      rng_key: a key, `[]`.
      landscape: what to walk on.
      positions: initial positions, leading axis `[members]`, at least 2.
      schedule: `step -> temperature`, above 0; taken at the first step of each block.
      num_steps: proposals of each member, rounded up to whole blocks; static.
      data: passed on to the landscape.
      chain_batch: members vmapped together, 1 on a CPU; None for all. Static.

    Returns:
      A `PopulationResult`.

    Raises:
      InputError: fewer than two members.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import from_energy, geometric_schedule
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> landscape, start = from_energy(energy, move), jnp.zeros(20)
    >>> result = population_anneal(jax.random.key(0), landscape, start, geometric_schedule(5.0, 0.01, 1000), 1000)
    >>> round(float(result.best), 1)
    7.8
    """
    data = as_arrays(data)
    members = jnp.shape(jax.tree.leaves(positions)[0])[0] if jnp.ndim(jax.tree.leaves(positions)[0]) else 1
    if members < 2:
        raise InputError("positions must have a leading axis [members] of at least 2")
    chains_key, resample_key = jax.random.split(rng_key)
    keys = jax.vmap(partial(jax.random.fold_in, chains_key))(jnp.arange(members))
    states = _map(lambda position: init(landscape, position, data), positions, chain_batch)

    def block(carry, number):
        states, family, best, best_energy = carry
        first = number * BLOCK_STEPS
        temperature = jnp.asarray(schedule(first), jnp.float32)

        def walk(chain):
            key, state = chain
            return run(key, landscape, state, constant_schedule(temperature), first, BLOCK_STEPS, data)[0]

        states = _map(walk, (keys, states), chain_batch)
        # The best of members that are dropped must not be lost.
        winner = _lowest(states.best_energy)
        improved = states.best_energy[winner] < best_energy
        best = jax.tree.map(lambda new, old: jnp.where(improved, new[winner], old), states.best, best)
        best_energy = jnp.where(improved, states.best_energy[winner], best_energy)
        cooler = jnp.asarray(schedule(first + BLOCK_STEPS), jnp.float32)
        log_weights = -(1 / cooler - 1 / temperature) * states.walk.energy
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
        shares = jnp.cumsum(jax.nn.softmax(log_weights))
        # In (0, 1], and the first share that reaches a place: no member without weight is ever taken.
        offset = 1 - jax.random.uniform(jax.random.fold_in(resample_key, number), dtype=jnp.float32)
        places = jnp.minimum((jnp.arange(members) + offset) / members, 1) * shares[-1]
        parents = jnp.searchsorted(shares, places)
        # A schedule may end at 0, where no weights can be told.
        parents = jnp.where((cooler > 0) & jnp.isfinite(log_weights).any(), parents, jnp.arange(members))
        states, family = jax.tree.map(lambda leaf: leaf[parents], (states, family))
        return (states, family, best, best_energy), None

    winner = _lowest(states.best_energy)
    best, best_energy = jax.tree.map(lambda leaf: leaf[winner], (states.best, states.best_energy))
    carry = states, jnp.arange(members, dtype=jnp.int32), best, best_energy
    carry = match_varying(carry, rng_key, states.best_energy, schedule(jnp.int32(0)))
    blocks = jnp.arange(-(-num_steps // BLOCK_STEPS), dtype=jnp.int32)
    (states, family, best, best_energy), _ = jax.lax.scan(block, carry, blocks)
    sizes = jnp.zeros(members).at[family].add(1)
    return PopulationResult(
        best,
        best_energy,
        states.walk.position,
        states.walk.energy,
        family,
        (sizes**2).sum() / members,
        states.num_accepted,
    )


def _exchange(rng_key: jax.Array, replicas: Replicas, energies: jax.Array, number: jax.Array) -> Replicas:
    rungs = replicas.rung.size
    at = jnp.argsort(replicas.rung)
    energy = energies[at]
    inverse = jnp.exp(-replicas.log_temperatures)
    log_ratio = (inverse[:-1] - inverse[1:]) * (energy[:-1] - energy[1:])
    tried = jnp.arange(rungs - 1) % 2 == number % 2
    chance = jnp.exp(jnp.minimum(log_ratio, 0))
    chance = jnp.where(tried & ~jnp.isnan(chance), chance, replicas.chance)
    log_u = -jax.random.exponential(rng_key, (rungs - 1,))
    # False where an energy is NaN.
    exchanges = tried & (log_u <= log_ratio)
    down, up = jnp.pad(exchanges, (1, 0)), jnp.pad(exchanges, (0, 1))
    to = jnp.arange(rungs, dtype=jnp.int32) + up.astype(jnp.int32) - down.astype(jnp.int32)
    rung = jnp.zeros_like(to).at[at].set(to)
    arrived = (rung == 0) & (replicas.heading == 1)
    turns = (rung == rungs - 1) & (replicas.heading == -1)
    heading = jnp.where(rung == 0, -1, jnp.where(turns, 1, replicas.heading))
    return replicas._replace(
        rung=rung,
        tried=replicas.tried + tried,
        exchanged=replicas.exchanged + exchanges,
        chance=chance,
        heading=heading,
        round_trips=replicas.round_trips + arrived,
    )


def _lowest(energies):
    return jnp.where(jnp.isnan(energies), jnp.inf, energies).argmin()


def _map(function: Any, chains: PyTree, chain_batch: int | None) -> PyTree:
    # A batch of one would still be vmapped, and every branch of the program evaluated.
    if chain_batch is None:
        return jax.vmap(function)(chains)
    return jax.lax.map(function, chains, batch_size=None if chain_batch == 1 else chain_batch)
