"""Simulated annealing: one pure, unjitted chain in a `lax.scan`.

Metropolis et al. 1953 and Hastings 1970 for the acceptance, Kirkpatrick, Gelatt & Vecchi 1983 for the
annealing, Kuo, Kuruoglu & Chan 2022 for its use on network structure.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.landscape import batch_bound
from sa_jax.annealing.schedules import constant_schedule
from sa_jax.checks import whole
from sa_jax.types import AnnealResult, AnnealState, InputError, Landscape, PyTree, Scalar, Schedule, Trace

# Random numbers are drawn for this many steps at once; a chain's bits depend on the value.
BLOCK_STEPS = 100


def init(landscape: Landscape, position: PyTree, data: tuple = ()) -> AnnealState:
    """Evaluates the initial position and returns the state of a chain that has made no step.

    Args:
      landscape: what to walk on.
      position: any pytree the landscape takes.
      data: passed on to the landscape.

    >>> from sa_jax import from_energy
    >>> init(from_energy(lambda x: x**2, lambda rng_key, x: -x), 3.0).best_energy
    Array(9., dtype=float32)
    """
    walk = landscape.init(position, data)
    return AnnealState(walk, walk.position, walk.energy, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def accept(
    energy_change: jax.Array, log_q_ratio: jax.Array, temperature: jax.Array, log_u: jax.Array
) -> jax.Array:
    """The Metropolis-Hastings rule, `log u <= -energy_change / temperature + log_q_ratio`.

    At temperature 0 it is greedy: every decrease is accepted and no increase. A NaN change is rejected, and so
    is a log ratio of -inf, by which a proposal says that it stays where it is.

    Args:
      energy_change: float32 `[]`.
      log_q_ratio: `log q(current | proposed) - log q(proposed | current)`, float32 `[]`.
      temperature: float32 `[]`, not negative, in units of the energy.
      log_u: logarithm of a number uniform in (0, 1], float32 `[]`.

    Returns:
      bool `[]`.
    """
    positive = temperature > 0
    metropolis = -energy_change / jnp.where(positive, temperature, 1.0) + log_q_ratio
    greedy = jnp.where(energy_change < 0, jnp.inf, jnp.where(energy_change == 0, log_q_ratio, -jnp.inf))
    return (log_u <= jnp.where(positive, metropolis, greedy)) & (log_q_ratio > -jnp.inf)


def step(
    landscape: Landscape,
    state: AnnealState,
    noise: PyTree,
    log_u: jax.Array,
    temperature: jax.Array,
    data: tuple = (),
) -> AnnealState:
    """One proposal, from its random numbers to its acceptance.

    Args:
      landscape: what to walk on.
      state: the chain before it.
      noise: as `landscape.draw` gives it.
      log_u: logarithm of a number uniform in (0, 1], float32 `[]`.
      temperature: in units of the energy, float32 `[]`.
      data: passed on to the landscape.
    """
    move, log_q_ratio = landscape.propose(noise, state.walk, temperature)

    def settle(_, state):
        energy_change, pending = landscape.delta(state.walk, move, data)
        accepted = accept(energy_change, log_q_ratio, temperature, log_u)
        return _settle(landscape, state, move, pending, accepted, ~jnp.isfinite(energy_change))

    # A loop of one pass or none, which updates its carry in place where a branch would copy it.
    return jax.lax.fori_loop(0, batch_bound((log_q_ratio > -jnp.inf).astype(jnp.int32)), settle, state)


def _settle(landscape, state, move, pending, accepted, not_finite):
    state = _with_best(landscape, state, landscape.commit(state.walk, move, pending, accepted))
    return state._replace(
        num_accepted=state.num_accepted + accepted.astype(jnp.int32),
        num_not_finite=state.num_not_finite + not_finite.astype(jnp.int32),
    )


def _with_best(landscape, state, walk):
    improved = walk.energy < state.best_energy
    if landscape.remember is None:
        # Without vmap a real branch: the position is copied only when it is a new best.
        best = jax.lax.cond(improved, lambda: walk.position, lambda: state.best)
    else:
        best, walk = landscape.remember(state.best, walk, improved)
    best_energy = jnp.where(improved, walk.energy, state.best_energy)
    return state._replace(walk=walk, best=best, best_energy=best_energy)


def speculate(
    landscape: Landscape,
    state: AnnealState,
    noise: PyTree,
    log_u: jax.Array,
    temperature: jax.Array,
    parallel_proposals: int,
    data: tuple = (),
) -> tuple[AnnealState, tuple[jax.Array, jax.Array, jax.Array]]:
    """Many steps, `parallel_proposals` of them evaluated at once against the same state.

    The first accepted one is taken and those after it are proposed anew, from the same random numbers. Since
    a rejected proposal changes nothing, the chain is the very one that `step` makes, up to the rounding of
    batched arithmetic. It makes up for its waste where hardware is wide and acceptance low.

    Args:
      landscape: what to walk on.
      state: the chain before the first step.
      noise: random numbers of each step, leading axis `[steps]`.
      log_u: float32 `[steps]`.
      temperature: float32 `[steps]`.
      parallel_proposals: static, at least 1. Above 1, inside `shard_map`, `masked_mlp` needs `check_vma=False`.
      data: passed on to the landscape.

    Returns:
      The chain after the last step; and energy, lowest energy and accepted proposals after each, `[steps]`.
    """
    num_steps = log_u.size
    steps = jnp.arange(num_steps)

    def record(state):
        return state.walk.energy, state.best_energy, state.num_accepted

    def advance(carry):
        state, done, records = carry
        ahead = done + jnp.arange(parallel_proposals)
        noises, log_us, temperatures = jax.tree.map(
            lambda leaf: leaf[jnp.minimum(ahead, num_steps - 1)], (noise, log_u, temperature)
        )
        moves, log_q_ratios = jax.vmap(landscape.propose, (0, None, 0))(noises, state.walk, temperatures)
        changes, pendings = jax.vmap(landscape.delta, (None, 0, None))(state.walk, moves, data)
        accepted = jax.vmap(accept)(changes, log_q_ratios, temperatures, log_us) & (ahead < num_steps)
        first = jnp.where(accepted.any(), accepted.argmax(), parallel_proposals - 1).astype(jnp.int32)
        move, pending = jax.tree.map(lambda leaf: leaf[first], (moves, pendings))
        # Until then the records are those of before, which the rejected ones leave.
        made = (jnp.arange(parallel_proposals) <= first) & (ahead < num_steps) & (log_q_ratios > -jnp.inf)
        not_finite = (made & ~jnp.isfinite(changes)).sum()
        new = _settle(landscape, state, move, pending, accepted[first], not_finite)
        records = jax.tree.map(
            lambda kept, before, after: jnp.where(
                steps < done, kept, jnp.where(steps < done + first, before, after)
            ),
            records,
            record(state),
            record(new),
        )
        return new, done + first + 1, records

    records = jax.tree.map(lambda leaf: jnp.full(num_steps, leaf), record(state))
    none = state.num_accepted * 0  # under shard_map it varies over the mesh, as the number of steps done will
    carry = jax.lax.while_loop(lambda carry: carry[1] < num_steps, advance, (state, none, records))
    return carry[0], carry[2]


def run(
    rng_key: jax.Array,
    landscape: Landscape,
    state: AnnealState,
    schedule: Schedule,
    first_step: jax.Array | int,
    num_steps: int,
    data: tuple = (),
    trace_every: int = 0,
    parallel_proposals: int = 1,
) -> tuple[AnnealState, Trace | None]:
    """Steps `first_step .. first_step + num_steps - 1` of the chain that belongs to `rng_key`.

    A step's randomness depends on `rng_key` and the step's number alone, so that a chain cut into chunks
    is bit for bit the chain run at once.

    Args:
      rng_key: typed key, `[]`, the same for all chunks of a chain.
      landscape: what to walk on; its state is refreshed every `landscape.refresh_steps`.
      state: the chain before `first_step`.
      schedule: `step -> temperature`.
      first_step: a multiple of `BLOCK_STEPS`, int32 `[]`.
      num_steps: static, at least 0.
      data: passed on to the landscape.
      trace_every: static; record every so many steps of this chunk, or never at 0.
      parallel_proposals: static; proposals evaluated at once, see `speculate`.

    Returns:
      The chain after the last step, and its trace with `num_steps // trace_every` entries or None.
    """
    entries = num_steps // trace_every if trace_every else 0
    steps, energies = jnp.zeros(entries, jnp.int32), jnp.zeros(entries, state.best_energy.dtype)
    trace = Trace(steps, jnp.zeros(entries, jnp.float32), energies, energies, steps)

    def one_step(state, inputs):
        noise, log_u, temperature = inputs
        state = step(landscape, state, noise, log_u, temperature, data)
        return state, (state.walk.energy, state.best_energy, state.num_accepted) if trace_every else ()

    def one_block(block_steps, carry, start):
        state, trace = carry
        start = jnp.asarray(start, jnp.int32)
        refresh = (start % landscape.refresh_steps == 0) & (start > 0)
        walk = jax.lax.cond(refresh, lambda w: landscape.refresh(w, data), lambda w: w, state.walk)
        state = _with_best(landscape, state, walk)
        noise_key, accept_key = jax.random.split(jax.random.fold_in(rng_key, start // BLOCK_STEPS))
        keys = jax.vmap(partial(jax.random.fold_in, noise_key))(jnp.arange(block_steps))
        log_u = -jax.random.exponential(accept_key, (BLOCK_STEPS,))[:block_steps]
        steps = start + jnp.arange(block_steps, dtype=jnp.int32)
        temperature = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(steps)
        inputs = (jax.vmap(landscape.draw)(keys), log_u, temperature)
        if parallel_proposals > 1:
            state, records = speculate(landscape, state, *inputs, parallel_proposals, data)
        else:
            state, records = jax.lax.scan(one_step, state, inputs)
        if trace_every:
            done = steps - first_step + 1
            entry = jnp.where(done % trace_every == 0, done // trace_every - 1, entries)
            values = Trace(steps + 1, temperature, *records)
            trace = jax.tree.map(lambda kept, new: kept.at[entry].set(new, mode="drop"), trace, values)
        return (state, trace), None

    state, trace = match_varying((state, trace), rng_key, state.best_energy, schedule(jnp.int32(0)))
    blocks, rest = divmod(num_steps, BLOCK_STEPS)
    starts = first_step + BLOCK_STEPS * jnp.arange(blocks, dtype=jnp.int32)
    carry, _ = jax.lax.scan(partial(one_block, BLOCK_STEPS), (state, trace), starts)
    if rest:
        carry, _ = one_block(rest, carry, first_step + BLOCK_STEPS * blocks)
    state, trace = carry
    return state, trace if trace_every else None


def anneal(
    rng_key: jax.Array,
    landscape: Landscape,
    position: PyTree,
    schedule: Schedule | float,
    num_steps: int,
    data: tuple = (),
    trace_every: int = 0,
    parallel_proposals: int = 1,
) -> AnnealResult:
    """Anneals one position on a landscape. Pure: works inside `jit`, `vmap`, `scan` and `shard_map`.

    Not for reverse-mode differentiation: a proposal is evaluated in a loop of one pass or none.

    Args:
      rng_key: a key, `[]`; the only source of randomness. For many chains, `vmap` over keys.
      landscape: from `from_energy`, `masked_mlp`, or your own.
      position: initial position, any pytree the landscape takes, of finite energy: a chain never leaves NaN.
      schedule: `step -> temperature` (a schedule of optax fits), or a number for a constant temperature.
      num_steps: proposals, at least 0; static under `jit`.
      data: arrays passed on to the energy, so that they need not be captured.
      trace_every: record every so many steps; 0 records nothing. Static under `jit`.
      parallel_proposals: number of proposals evaluated at once against the same state, at least 1; the first
        that is accepted is taken. The chain is the same, and faster on wide hardware where few proposals are accepted.
        Static under `jit`.

    Returns:
      An `AnnealResult`; best and final position are kept apart.

    Raises:
      InputError: `num_steps` or `trace_every` is not a whole number of at least 0, `parallel_proposals` is not one
        of at least 1, the schedule is neither a number nor callable, or `data` is not a tuple.

    The lowest of nine wells:

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import anneal, from_energy, geometric_schedule
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> landscape, schedule = from_energy(energy, move), geometric_schedule(5.0, 0.01, 2000)
    >>> result = anneal(jax.random.key(0), landscape, 0.0, schedule, 2000)
    >>> round(float(result.best), 1)
    7.8
    """
    num_steps, trace_every = whole("num_steps", num_steps), whole("trace_every", trace_every)
    parallel_proposals = whole("parallel_proposals", parallel_proposals, 1)
    if not isinstance(data, tuple | list):
        raise InputError(f"data must be a tuple, such as data=(x,), not {type(data).__name__}")
    data = as_arrays(data)
    if not callable(schedule):
        if not isinstance(schedule, jax.Array | np.ndarray | np.generic | int | float) or jnp.ndim(schedule) != 0:
            raise InputError("schedule must be a number or a callable `step -> temperature`")
        schedule = constant_schedule(schedule)
    state, trace = run(
        rng_key,
        landscape,
        init(landscape, position, data),
        schedule,
        0,
        num_steps,
        data,
        trace_every,
        parallel_proposals,
    )
    return AnnealResult(
        state.best,
        state.best_energy,
        state.walk.position,
        state.walk.energy,
        state.num_accepted,
        trace,
        state.num_not_finite,
    )


def as_arrays(data: tuple) -> tuple:
    """NumPy arrays as those of JAX: indexing one by a traced index would fail."""
    return tuple(jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, data))


def match_varying(carry: PyTree, rng_key: jax.Array, *values: Scalar) -> PyTree:
    """The same carry, varying over the mesh inside `shard_map` as all of the given values do.

    A carry must vary before the first step as it does after it, and a start shared by all chains does not. A
    choice between equals makes it so, in every version, and compiles away.

    Args:
      carry: any pytree of arrays.
      rng_key: a key, `[]`.
      *values: float arrays or numbers, of any shape.
    """
    varying = jnp.any(jax.random.bits(rng_key) == 0)
    for value in values:
        varying |= jnp.isnan(value).any()
    return jax.tree.map(lambda leaf: jnp.where(varying, leaf, leaf), carry)
