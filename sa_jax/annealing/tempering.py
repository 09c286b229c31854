"""Replica exchange and population annealing: many chains, each of which makes the steps of `anneal`.

Sources: Swendsen & Wang 1986 and Hukushima & Nemoto 1996 for replica exchange; Vousden, Farr & Mandel 2016 for the
adaptation of its ladder; Hukushima & Iba 2003 and Machta 2010 for population annealing.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.chain import BLOCK_STEPS, init, match_varying, run, scan_carry
from sa_jax.annealing.inputs import MOST_STEPS, as_data, as_position, check_key, check_landscape, described
from sa_jax.annealing.programs import call_compiled
from sa_jax.annealing.schedules import as_schedule, constant_schedule, temperature_at
from sa_jax.checks import whole
from sa_jax.types import AnnealState, InputError, Landscape, PyTree, Schedule, exportable

# Gain of the adaptation of a ladder: in the n-th exchange, the logarithm of a gap changes by this number / (n +
# ADAPTATION_DELAY) times the error of the acceptance. So the ladder converges (Robbins & Monro 1951).
ADAPTATION_GAIN = 4.0
ADAPTATION_DELAY = 10.0
# Narrowest gap of an adapted ladder, as a share of the mean gap.
NARROWEST_GAP = 0.01


@exportable
class TemperTrace(NamedTuple):
    """The values that `temper` records; entry `i` is taken after `(i + 1) * trace_every` steps of each replica.

    Attributes:
      step: number of steps made.
      temperature: the ladder in these steps: it changes while it is adapted.
      energy: the energy on each rung, after the exchanges that follow these steps.
    """

    step: jax.Array  # int32 [entries]
    temperature: jax.Array  # float32 [entries, rungs]
    energy: jax.Array  # float32 [entries, rungs]


@exportable
class TemperResult(NamedTuple):
    """The result of `temper`. Rung 0 has the lowest temperature.

    Attributes:
      best: the position of the lowest energy that any replica found.
      best_energy: the energy of `best`.
      final: the position on each rung after the last step, leading axis `[rungs]`.
      final_energy: the energy on each rung after the last step.
      temperatures: the ladder: the temperature of each rung, after adaptation.
      exchange_share: share of accepted exchanges between each rung and the next. Only exchanges with the final
        ladder count. NaN if none was tried.
      num_tried: number of exchanges that were tried between each rung and the next, with the final ladder.
      num_accepted: number of proposals that each replica accepted, on all rungs. By replica, not by rung.
      round_trips: number of times that each replica went from the first rung to the last and back, counted from
        the first step. By replica, not by rung.
      num_not_finite: number of proposals of each replica whose energy change was NaN or infinite. By replica, not
        by rung.
      trace: a `TemperTrace`, or None if `trace_every` is 0.
    """

    best: PyTree
    best_energy: jax.Array  # float32 []
    final: PyTree
    final_energy: jax.Array  # float32 [rungs]
    temperatures: jax.Array  # float32 [rungs]
    exchange_share: jax.Array  # float32 [rungs - 1]
    num_tried: jax.Array  # int32 [rungs - 1]
    num_accepted: jax.Array  # int32 [rungs]
    round_trips: jax.Array  # int32 [rungs]
    num_not_finite: jax.Array  # int32 [rungs]
    trace: TemperTrace | None


@exportable
class Replicas(NamedTuple):
    """All replicas between two periods of steps. In an exchange, two replicas swap rungs and keep their states.

    Attributes:
      chains: the state of each replica, leading axis `[rungs]`; inside `shard_map`, only the replicas of this
        device.
      rung: the rung of each replica.
      log_temperatures: logarithm of the temperature of each rung.
      tried: number of exchanges tried between each rung and the next, with the final ladder.
      exchanged: number of exchanges accepted between each rung and the next, with the final ladder.
      heading: direction of each replica: -1 on its way up after a visit to the first rung, 1 on its way down after
        a later visit to the last rung, 0 before its first visit to the first rung.
      round_trips: see `TemperResult`.
    """

    chains: AnnealState
    rung: jax.Array  # int32 [rungs]
    log_temperatures: jax.Array  # float32 [rungs]
    tried: jax.Array  # int32 [rungs - 1]
    exchanged: jax.Array  # int32 [rungs - 1]
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
    exchange_every: int = BLOCK_STEPS,
    trace_every: int = 0,
) -> TemperResult:
    """Runs replica exchange: one chain per temperature; neighbouring chains exchange their temperatures.

    After every `exchange_every` steps, exchanges are tried between replicas at neighbouring temperatures: between
    every other pair of rungs, in turn. An exchange is accepted with probability
    `min(1, exp((1 / T_i - 1 / T_j) * (E_i - E_j)))`. With a fixed ladder, each rung samples the Boltzmann
    distribution of its temperature. Calls from outside of `jit` are compiled once, as those of `anneal`.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to anneal on.
      position: initial position of all replicas.
      temperatures: the ladder: at least 2 rising temperatures above 0, float `[rungs]`. The usual choice is
        `jnp.geomspace(low, high, rungs)`.
      num_steps: number of proposals of each replica, rounded up to a multiple of `exchange_every`; static.
      data: arrays that are passed to the landscape.
      adapt_steps: number of first steps in which the ladder is adapted, from 0 to `num_steps`; static. The
        temperatures between the first and the last change, so that all pairs of neighbours come to accept the same
        share of their exchanges. After these steps the ladder is fixed.
      chain_batch: number of replicas that are vmapped together; None for all. On a CPU use 1 if the state of a
        chain is large (see `docs/chains.md`). Static.
      axis_name: inside `shard_map`, the name of the mesh axis over which the replicas are spread; static. The mesh
        may span any number of devices and processes. Devices exchange only energies, every `exchange_every` steps.
        `shard_map` needs `check_vma=False`.
      exchange_every: number of steps between two exchanges, at least 1; static. The random numbers of
        `sa_jax.annealing.chain.BLOCK_STEPS` steps are drawn for it, or of a multiple of them.
      trace_every: number of steps between two records, a multiple of `exchange_every`; 0 records nothing. Static.

    Returns:
      A `TemperResult`, the same on every device.

    Raises:
      InputError: there are fewer than two temperatures, the temperatures are not above 0, finite and rising in
        float32, their number is not a multiple of the number of devices, `adapt_steps` is not a whole number from
        0 to `num_steps`, `chain_batch` or `exchange_every` is not a whole number of at least 1, `trace_every` is
        not a multiple of `exchange_every`, or an argument is refused as by `anneal`.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import from_energy
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> ladder = jnp.geomspace(0.05, 5, 4)
    >>> result = temper(jax.random.key(0), from_energy(energy, move), 0.0, ladder, 1_000)
    >>> round(float(result.best), 1)
    7.8
    """
    check_key(rng_key)
    check_landscape(landscape)
    temperatures = _checked_ladder(temperatures)
    exchange_every = whole("exchange_every", exchange_every, 1, MOST_STEPS)
    # The random numbers of a step depend on its number. So a period begins at a multiple of BLOCK_STEPS.
    stride = BLOCK_STEPS * -(-exchange_every // BLOCK_STEPS)
    num_steps = whole("num_steps", num_steps, most=MOST_STEPS * exchange_every // stride)
    adapt_steps = whole("adapt_steps", adapt_steps, 0, num_steps, " (num_steps)")
    trace_every = whole("trace_every", trace_every)
    if trace_every % exchange_every:
        raise InputError(
            f"trace_every must be a multiple of exchange_every, {exchange_every}, or 0 for no trace, "
            f"not {trace_every}"
        )
    periods, adapted = (-(-steps // exchange_every) for steps in (num_steps, adapt_steps))
    plan = _Plan(exchange_every, stride, periods, adapted, trace_every // exchange_every)
    function = partial(_temper, landscape, plan, _checked_batch(chain_batch), axis_name)
    arguments = rng_key, as_position(position), temperatures, as_data(data)
    # With an axis, this is part of a larger program, also if nothing of it is traced.
    return call_compiled(function, *arguments) if axis_name is None else function(*arguments)


class _Plan(NamedTuple):
    """How many steps and exchanges `temper` makes.

    Attributes:
      steps: number of steps in a period, after which exchanges are tried.
      stride: number from the first step of a period to the first step of the next, in the chains' random numbers.
      periods: number of periods.
      adapted: number of first periods after which the ladder is adapted.
      traced: number of periods between two records; 0 records nothing.
    """

    steps: int
    stride: int
    periods: int
    adapted: int
    traced: int


def _temper(landscape, plan, chain_batch, axis_name, rng_key, position, temperatures, data) -> TemperResult:
    rungs = temperatures.size
    chains_key, exchange_key = jax.random.split(rng_key)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if rungs % devices:
        raise InputError(
            f"the number of temperatures, {rungs}, must be a multiple of the number of devices, {devices}"
        )
    here = jnp.arange(rungs // devices)
    if axis_name is not None:
        here += jax.lax.axis_index(axis_name) * here.size

    def everywhere(tree):
        """Gathers the values of all replicas from all devices."""
        return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)

    keys = jax.vmap(partial(jax.random.fold_in, chains_key))(here)
    start = init(landscape, position, data)
    entries = plan.periods // plan.traced if plan.traced else 0
    trace = TemperTrace(
        jnp.zeros(entries, jnp.int32),
        jnp.zeros((entries, rungs), jnp.float32),
        jnp.zeros((entries, rungs), start.walk.energy.dtype),
    )
    carry = _initial_replicas(start, temperatures, here.size), trace

    def period(carry, number):
        replicas, trace = carry

        def walk(chain):
            key, state, temperature = chain
            schedule, first_step = constant_schedule(temperature), number * plan.stride
            return run(key, landscape, state, schedule, first_step, plan.steps, data)[0]

        own = jnp.exp(replicas.log_temperatures)[replicas.rung[here]]
        chains = _map(walk, (keys, replicas.chains, own), chain_batch)
        replicas, energies = replicas._replace(chains=chains), everywhere(chains.walk.energy)
        replicas, chance = _exchange(jax.random.fold_in(exchange_key, number), replicas, energies, number)
        if plan.traced:
            done = number + 1
            entry = jnp.where(done % plan.traced == 0, done // plan.traced - 1, entries)
            ladder = jnp.exp(replicas.log_temperatures)
            values = TemperTrace(done * plan.steps, ladder, energies[jnp.argsort(replicas.rung)])
            trace = jax.tree.map(lambda kept, new: kept.at[entry].set(new, mode="drop"), trace, values)
        return (_with_adapted_ladder(replicas, chance, number, number < plan.adapted), trace), None

    carry = match_varying(carry, rng_key, start.best_energy, temperatures)
    replicas, trace = scan_carry(period, carry, jnp.arange(plan.periods, dtype=jnp.int32))
    chains = replicas.chains
    counts = chains.num_accepted, chains.num_not_finite
    found = chains.best, chains.best_energy, chains.walk.position, chains.walk.energy, *counts
    return _temper_result(replicas, trace if plan.traced else None, *everywhere(found))


@exportable
class PopulationResult(NamedTuple):
    """The result of `population_anneal`.

    Attributes:
      best: the position of the lowest energy that any member found.
      best_energy: the energy of `best`.
      final: the position of each member after the last step, leading axis `[members]`.
      final_energy: the energy of each member after the last step.
      family: index of the initial member from which each member descends.
      mean_square_family_size: `members * sum((family size / members)**2)`. If the population is large enough, this
        is far below the number of members (Wang, Machta & Katzgraber 2015).
      num_accepted: number of accepted proposals of each member and its ancestors.
      num_not_finite: number of proposals of each member and its ancestors whose energy change was NaN or infinite,
        or whose temperature was NaN or negative. Those of such an energy change are rejected. At such a
        temperature the rule is greedy, and nothing is resampled.
    """

    best: PyTree
    best_energy: jax.Array  # float32 []
    final: PyTree
    final_energy: jax.Array  # float32 [members]
    family: jax.Array  # int32 [members]
    mean_square_family_size: jax.Array  # float32 []
    num_accepted: jax.Array  # int32 [members]
    num_not_finite: jax.Array  # int32 [members]


def population_anneal(
    rng_key: jax.Array,
    landscape: Landscape,
    positions: PyTree,
    schedule: Schedule | float,
    num_steps: int,
    data: tuple = (),
    chain_batch: int | None = None,
) -> PopulationResult:
    """Runs population annealing: many chains on one schedule, resampled whenever the temperature changes.

    Each block of `sa_jax.annealing.chain.BLOCK_STEPS` steps has one temperature, `T`. After the block, the members
    of the population are resampled with weights `exp(-(1 / T' - 1 / T) * E)`, where `T'` is the temperature of the
    next block. The number of members stays the same (systematic resampling; Douc & Cappe 2005). So a large
    population follows the Boltzmann distribution while the temperature falls. Calls from outside of `jit` are
    compiled once, as those of `anneal`.

    Args:
      rng_key: a key, `[]`.
      landscape: the landscape to anneal on.
      positions: initial positions, leading axis `[members]`, at least 2.
      schedule: `step -> temperature`, above 0; evaluated at the first step of each block. Or a number for a
        constant temperature, at which nothing is resampled.
      num_steps: number of proposals of each member, rounded up to whole blocks; static.
      data: arrays that are passed to the landscape.
      chain_batch: number of members that are vmapped together; None for all. On a CPU use fewer if their states do
        not fit into the cache (see `docs/chains.md`). Static.

    Returns:
      A `PopulationResult`.

    Raises:
      InputError: there are fewer than two members, the arrays of `positions` have different numbers of members,
        `num_steps` is not a whole number of at least 0, `chain_batch` is not a whole number of at least 1, or an
        argument is refused as by `anneal`.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import from_energy, geometric_schedule
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> landscape, start = from_energy(energy, move), jnp.zeros(20)
    >>> result = population_anneal(jax.random.key(0), landscape, start, geometric_schedule(5.0, 0.01, 1000), 1000)
    >>> round(float(result.best), 1)
    7.8
    """
    check_key(rng_key)
    check_landscape(landscape)
    num_steps = whole("num_steps", num_steps, most=MOST_STEPS)
    schedule, data, chain_batch = as_schedule(schedule), as_data(data), _checked_batch(chain_batch)
    positions = as_position(positions)
    sizes = {leaf.shape[0] if leaf.ndim else 1 for leaf in jax.tree.leaves(positions)}
    if len(sizes) > 1 or min(sizes) < 2:
        raise InputError("positions must have a leading axis [members] of at least 2, the same in each array")
    function = partial(_population_anneal, landscape, num_steps, chain_batch)
    return call_compiled(function, rng_key, positions, schedule, data)


def _population_anneal(landscape, num_steps, chain_batch, rng_key, positions, schedule, data) -> PopulationResult:
    members = jax.tree.leaves(positions)[0].shape[0]
    chains_key, resample_key = jax.random.split(rng_key)
    keys = jax.vmap(partial(jax.random.fold_in, chains_key))(jnp.arange(members))
    states = _map(lambda position: init(landscape, position, data), positions, chain_batch)

    def block(carry, number):
        states, family, best, best_energy = carry
        first = number * BLOCK_STEPS
        temperature = temperature_at(schedule, first)

        def walk(chain):
            key, state = chain
            return run(key, landscape, state, constant_schedule(temperature), first, BLOCK_STEPS, data)[0]

        states = _map(walk, (keys, states), chain_batch)
        # Resampling may drop the member that found the lowest energy, so the best position is kept apart.
        winner = _lowest(states.best_energy)
        improved = states.best_energy[winner] < best_energy
        best = jax.tree.map(lambda new, old: jnp.where(improved, new[winner], old), states.best, best)
        best_energy = jnp.where(improved, states.best_energy[winner], best_energy)
        cooler = temperature_at(schedule, first + BLOCK_STEPS)
        log_weights = -(1 / cooler - 1 / temperature).astype(states.walk.energy.dtype) * states.walk.energy
        parents = _resampled(jax.random.fold_in(resample_key, number), log_weights, cooler)
        states, family = jax.tree.map(lambda leaf: leaf[parents], (states, family))
        return (states, family, best, best_energy), None

    winner = _lowest(states.best_energy)
    best, best_energy = jax.tree.map(lambda leaf: leaf[winner], (states.best, states.best_energy))
    carry = states, jnp.arange(members, dtype=jnp.int32), best, best_energy
    carry = match_varying(carry, rng_key, states.best_energy, temperature_at(schedule, 0))
    blocks = jnp.arange(-(-num_steps // BLOCK_STEPS), dtype=jnp.int32)
    states, family, best, best_energy = scan_carry(block, carry, blocks)
    sizes = jnp.zeros(members, jnp.float32).at[family].add(1)
    return PopulationResult(
        best,
        best_energy,
        states.walk.position,
        states.walk.energy,
        family,
        (sizes**2).sum() / members,
        states.num_accepted,
        states.num_not_finite,
    )


def _checked_ladder(temperatures: jax.Array) -> jax.Array:
    """Returns the temperatures as float32 `[rungs]`, after checking them."""
    if isinstance(temperatures, Tracer):
        ladder = temperatures
    else:
        try:
            with np.errstate(over="ignore"):
                ladder = np.asarray(temperatures, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"temperatures must be an array of numbers, not {described(temperatures)}") from None
    if ladder.ndim != 1 or ladder.size < 2:
        raise InputError(
            f"temperatures must have the shape [rungs], with at least 2 rungs, not {list(ladder.shape)}"
        )
    if isinstance(ladder, np.ndarray) and not (
        np.all(np.diff(ladder) > 0) and np.isfinite(ladder).all() and ladder[0] > 0
    ):
        raise InputError(f"temperatures must be above 0, finite and rising, not {ladder.tolist()}")
    return jnp.asarray(ladder, jnp.float32)


def _checked_batch(chain_batch: int | None) -> int | None:
    return None if chain_batch is None else whole("chain_batch", chain_batch, 1, otherwise=", or None for all")


def _initial_replicas(start: AnnealState, temperatures: jax.Array, size: int) -> Replicas:
    """Returns one replica per rung before the first step, and the chains of `size` of them, all at `start`."""
    rungs = temperatures.size
    none = jnp.zeros(rungs, jnp.int32)
    return Replicas(
        chains=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), start),
        rung=jnp.arange(rungs, dtype=jnp.int32),
        log_temperatures=jnp.log(temperatures),
        tried=none[1:],
        exchanged=none[1:],
        heading=none.at[0].set(-1),
        round_trips=none,
    )


def _with_adapted_ladder(replicas: Replicas, chance: jax.Array, number: jax.Array, adapts: jax.Array) -> Replicas:
    """Returns the replicas with another ladder if it adapts: gaps of more acceptance than the mean get wider.

    Args:
      replicas: the replicas after the exchanges of a period.
      chance: acceptance probability between each rung and the next, float32 `[rungs - 1]`.
      number: the number of the period, int32 `[]`.
      adapts: bool `[]`.
    """
    known = ~jnp.isnan(chance)
    mean = jnp.where(known, chance, 0).sum() / jnp.maximum(known.astype(jnp.float32).sum(), 1)
    error = jnp.where(known, chance - mean, 0)
    gain = ADAPTATION_GAIN / (ADAPTATION_DELAY + number.astype(jnp.float32))
    first, last = replicas.log_temperatures[0], replicas.log_temperatures[-1]
    shares = jnp.diff(replicas.log_temperatures) * jnp.exp(gain * error)
    shares = jnp.maximum(shares / shares.mean(), NARROWEST_GAP)
    inner = first + (last - first) * (jnp.cumsum(shares) / shares.sum())[:-1]
    ladder = jnp.concatenate([first[None], inner, last[None]])
    return replicas._replace(
        log_temperatures=jnp.where(adapts, ladder, replicas.log_temperatures),
        tried=jnp.where(adapts, 0, replicas.tried),
        exchanged=jnp.where(adapts, 0, replicas.exchanged),
    )


def _temper_result(
    replicas, trace, best, best_energy, final, final_energy, num_accepted, num_not_finite
) -> TemperResult:
    """Returns the result, from the values of all replicas in the order of the replicas."""
    winner = best_energy.argmin()
    at = jnp.argsort(replicas.rung)
    tried, exchanged = replicas.tried.astype(jnp.float32), replicas.exchanged.astype(jnp.float32)
    return TemperResult(
        best=jax.tree.map(lambda leaf: leaf[winner], best),
        best_energy=best_energy[winner],
        final=jax.tree.map(lambda leaf: leaf[at], final),
        final_energy=final_energy[at],
        temperatures=jnp.exp(replicas.log_temperatures),
        exchange_share=jnp.where(tried > 0, exchanged / jnp.maximum(tried, 1), jnp.nan),
        num_tried=replicas.tried,
        num_accepted=num_accepted,
        round_trips=replicas.round_trips,
        num_not_finite=num_not_finite,
        trace=trace,
    )


def _resampled(rng_key: jax.Array, log_weights: jax.Array, temperature: jax.Array) -> jax.Array:
    """Draws the parent of each member of the next population, int32 `[members]`, by systematic resampling."""
    members = log_weights.size
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    shares = jnp.cumsum(jax.nn.softmax(log_weights))
    # The offset is in (0, 1], and `searchsorted` returns the first cumulative share that reaches a place. So a
    # member of weight 0 is never chosen.
    offset = 1 - jax.random.uniform(rng_key, dtype=jnp.float32)
    unchanged = jnp.arange(members, dtype=jnp.int32)
    places = jnp.minimum((unchanged.astype(jnp.float32) + offset) / members, 1).astype(shares.dtype) * shares[-1]
    parents = jnp.searchsorted(shares, places).astype(jnp.int32)
    # A schedule may end at temperature 0, where the weights are not defined. Then nothing is resampled.
    return jnp.where((temperature > 0) & jnp.isfinite(log_weights).any(), parents, unchanged)


def _exchange(
    rng_key: jax.Array, replicas: Replicas, energies: jax.Array, number: jax.Array
) -> tuple[Replicas, jax.Array]:
    """Tries exchanges between every other pair of rungs.

    Args:
      rng_key: a key, `[]`.
      replicas: the replicas before the exchanges.
      energies: the energies of all replicas, in their order, float32 `[rungs]`.
      number: the number of the period, int32 `[]`.

    Returns:
      The replicas after the exchanges; and the probability that an exchange between each rung and the next would
      have been accepted, float32 `[rungs - 1]`, NaN if an energy is NaN.
    """
    rungs = replicas.rung.size
    at = jnp.argsort(replicas.rung)
    energy = energies[at]
    inverse = jnp.exp(-replicas.log_temperatures)
    log_ratio = (inverse[:-1] - inverse[1:]) * (energy[:-1] - energy[1:]).astype(jnp.float32)
    tried = jnp.arange(rungs - 1, dtype=jnp.int32) % 2 == number % 2
    log_u = -jax.random.exponential(rng_key, (rungs - 1,), jnp.float32)
    # The comparison is False if an energy is NaN.
    exchanges = tried & (log_u <= log_ratio)
    down, up = jnp.pad(exchanges, (1, 0)), jnp.pad(exchanges, (0, 1))
    to = jnp.arange(rungs, dtype=jnp.int32) + up.astype(jnp.int32) - down.astype(jnp.int32)
    rung = jnp.zeros_like(to).at[at].set(to)
    arrived = (rung == 0) & (replicas.heading == 1)
    turns = (rung == rungs - 1) & (replicas.heading == -1)
    heading = jnp.where(rung == 0, -1, jnp.where(turns, 1, replicas.heading))
    replicas = replicas._replace(
        rung=rung,
        tried=replicas.tried + tried.astype(jnp.int32),
        exchanged=replicas.exchanged + exchanges.astype(jnp.int32),
        heading=heading,
        round_trips=replicas.round_trips + arrived.astype(jnp.int32),
    )
    return replicas, jnp.exp(jnp.minimum(log_ratio, 0))


def _lowest(energies):
    """Returns the index of the lowest energy; NaN counts as infinite."""
    return jnp.where(jnp.isnan(energies), jnp.inf, energies).argmin()


def _map(function: Any, chains: PyTree, chain_batch: int | None) -> PyTree:
    # `lax.map` would vmap even a batch of one. Under vmap a `lax.cond` evaluates both branches.
    if chain_batch is None:
        return jax.vmap(function)(chains)
    return jax.lax.map(function, chains, batch_size=None if chain_batch == 1 else chain_batch)
