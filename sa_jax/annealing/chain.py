"""Simulated annealing of one chain: a pure function around a `lax.scan`, compiled once when called outside `jit`.

Sources: Metropolis et al. 1953 and Hastings 1970 for the acceptance rule; Kirkpatrick, Gelatt & Vecchi 1983 for
annealing; Kuo, Kuruoglu & Chan 2022 for annealing the structure of a network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.drawing import drawn_ahead
from sa_jax.annealing.inputs import MOST_STEPS, as_data, as_position, check_key, check_landscape, described
from sa_jax.annealing.landscape import batch_bound, float_dtype
from sa_jax.annealing.programs import call_compiled
from sa_jax.annealing.schedules import as_schedule, temperature_at
from sa_jax.checks import whole
from sa_jax.types import AnnealResult, AnnealState, InputError, Landscape, PyTree, Scalar, Schedule, Trace

# Random numbers are drawn for this many steps at once. The results of a chain depend on this value.
BLOCK_STEPS = 100


def init(landscape: Landscape, position: PyTree, data: tuple = ()) -> AnnealState:
    """Evaluates the initial position and returns the state of a chain before its first step.

    Args:
      landscape: the landscape to anneal on.
      position: initial position, any pytree that the landscape accepts.
      data: arrays that are passed to the landscape.

    Raises:
      InputError: the landscape is not a `Landscape`, a leaf of the position is not an array, or `data` is not a
        tuple.

    >>> from sa_jax import from_energy
    >>> init(from_energy(lambda x: x**2, lambda rng_key, x: -x), 3.0).best_energy
    Array(9., dtype=float32)
    """
    check_landscape(landscape)
    return call_compiled(partial(_initial, landscape), as_position(position), as_data(data))


def _initial(landscape, position, data):
    walk = landscape.init(position, data)
    return AnnealState(walk, walk.position, walk.energy, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def accept(
    energy_change: jax.Array, log_q_ratio: jax.Array, temperature: jax.Array, log_u: jax.Array
) -> jax.Array:
    """Applies the Metropolis-Hastings rule, `log u <= -energy_change / temperature + log_q_ratio`.

    At temperature 0 the rule is greedy: every decrease is accepted, and every increase is rejected. A NaN change
    is rejected. A log ratio of -inf marks a proposal to stay in place; it is rejected too.

    Args:
      energy_change: energy of the proposed position minus the current energy, float32 or float64 `[]`. The rule is
        evaluated in this precision.
      log_q_ratio: `log q(current | proposed) - log q(proposed | current)`, float32 `[]`.
      temperature: at least 0, in units of the energy, float32 `[]`.
      log_u: logarithm of a uniform random number in (0, 1], float32 `[]`.

    Returns:
      Whether the proposal is accepted, bool `[]`.
    """
    dtype = float_dtype(energy_change)
    energy_change, log_q_ratio, temperature, log_u = (
        jnp.asarray(value, dtype) for value in (energy_change, log_q_ratio, temperature, log_u)
    )
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
    """Makes one step: proposes a move, evaluates it, and accepts or rejects it.

    Args:
      landscape: the landscape to anneal on.
      state: the chain before the step.
      noise: random numbers of the proposal, from `landscape.draw`.
      log_u: logarithm of a uniform random number in (0, 1], float32 `[]`.
      temperature: in units of the energy, float32 `[]`.
      data: arrays that are passed to the landscape.

    Returns:
      The chain after the step.

    Raises:
      InputError: `data` is not a tuple.
    """
    data = as_data(data)
    move, log_q_ratio = landscape.propose(noise, state.walk, temperature)

    def settle(_, state):
        if landscape.settle is None:
            energy_change, pending = landscape.delta(state.walk, move, data)
            accepted = accept(energy_change, log_q_ratio, temperature, log_u)
            walk = landscape.commit(state.walk, move, pending, accepted)
        else:
            rule = log_q_ratio, log_u, temperature
            walk, accepted, energy_change = landscape.settle(state.walk, move, *rule, data)
        return _settled(landscape, state, walk, accepted, ~_finite(energy_change, temperature))

    # A loop of one pass, or of none for a proposal to stay in place. XLA updates the carry of a loop in place; a
    # `lax.cond` would copy it.
    return jax.lax.fori_loop(0, batch_bound((log_q_ratio > -jnp.inf).astype(jnp.int32)), settle, state)


def _settled(landscape, state, walk, accepted, not_finite):
    state = _with_best(landscape, state, walk)
    return state._replace(
        num_accepted=state.num_accepted + accepted.astype(jnp.int32),
        num_not_finite=state.num_not_finite + not_finite.astype(jnp.int32),
    )


def _finite(energy_change, temperature):
    """Whether a proposal can be judged: its energy change is finite, and its temperature is at least 0."""
    return jnp.isfinite(energy_change) & (temperature >= 0)


def _with_best(landscape, state, walk):
    improved = walk.energy < state.best_energy
    if landscape.remember is None:
        # Without vmap this is a real branch: the position is copied only if it is a new best.
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
    """Makes many steps; evaluates `parallel_proposals` proposals at once against the same state.

    The first accepted proposal is made. The steps after it are proposed again from the new state, with the same
    random numbers. A rejected proposal changes nothing. So the chain is the same as the chain that `step` makes,
    up to the rounding of batched arithmetic. The evaluations after an accepted proposal are wasted. On hardware
    with many parallel units it is still faster, if few proposals are accepted.

    Args:
      landscape: the landscape to anneal on.
      state: the chain before the first step.
      noise: random numbers of each proposal, from `landscape.draw`, leading axis `[steps]`.
      log_u: logarithms of uniform random numbers in (0, 1], float32 `[steps]`.
      temperature: in units of the energy, float32 `[steps]`.
      parallel_proposals: number of proposals evaluated at once, at least 1; static. If it is above 1 inside
        `shard_map`, `masked_mlp` needs `check_vma=False`.
      data: arrays that are passed to the landscape.

    Returns:
      The chain after the last step, and three arrays `[steps]` with the values after each step: the energy, the
      lowest energy so far, and the number of accepted proposals so far.

    Raises:
      InputError: `data` is not a tuple.
    """
    data = as_data(data)
    num_steps = log_u.size
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    noise, with_keys = _keys_as_data(noise)

    def record(state):
        return state.walk.energy, state.best_energy, state.num_accepted

    def advance(carry):
        state, done, records = carry
        ahead = done + jnp.arange(parallel_proposals, dtype=jnp.int32)
        noises, log_us, temperatures = jax.tree.map(
            lambda leaf: leaf[jnp.minimum(ahead, num_steps - 1)], (noise, log_u, temperature)
        )
        moves, log_q_ratios = jax.vmap(landscape.propose, (0, None, 0))(
            with_keys(noises), state.walk, temperatures
        )
        changes, pendings = jax.vmap(landscape.delta, (None, 0, None))(state.walk, moves, data)
        accepted = jax.vmap(accept)(changes, log_q_ratios, temperatures, log_us) & (ahead < num_steps)
        first = jnp.where(accepted.any(), accepted.argmax(), parallel_proposals - 1).astype(jnp.int32)
        move, pending = jax.tree.map(lambda leaf: leaf[first], (moves, pendings))
        made = (
            (jnp.arange(parallel_proposals, dtype=jnp.int32) <= first)
            & (ahead < num_steps)
            & (log_q_ratios > -jnp.inf)
        )
        not_finite = (made & ~_finite(changes, temperatures)).sum()
        walk = landscape.commit(state.walk, move, pending, accepted[first])
        new = _settled(landscape, state, walk, accepted[first], not_finite)
        # The rejected proposals before the first accepted one leave the recorded values unchanged.
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
    none = state.num_accepted * 0  # inside shard_map this 0 varies over the mesh, like the number of steps made
    carry = jax.lax.while_loop(lambda carry: carry[1] < num_steps, advance, (state, none, records))
    return carry[0], carry[2]


def run(
    rng_key: jax.Array,
    landscape: Landscape,
    state: AnnealState,
    schedule: Schedule | float,
    first_step: jax.Array | int,
    num_steps: int,
    data: tuple = (),
    trace_every: int = 0,
    parallel_proposals: int = 1,
) -> tuple[AnnealState, Trace | None]:
    """Makes the steps `first_step` to `first_step + num_steps - 1` of a chain.

    The random numbers of a step depend only on `rng_key` and on the number of the step. So a chain that is run in
    chunks is bit for bit the same as a chain that is run in one call. As with `anneal`, chunks of the same number
    of steps compile once.

    Args:
      rng_key: a key, `[]`, the same for all chunks of a chain.
      landscape: the landscape to anneal on. Its state is refreshed every `landscape.refresh_steps` steps.
      state: the chain before `first_step`.
      schedule: `step -> temperature`, or a number for a constant temperature.
      first_step: a multiple of `BLOCK_STEPS`, int32 `[]`. The value of a traced number cannot be checked: with any
        other number, the steps draw the random numbers of other steps.
      num_steps: number of steps, at least 0; static.
      data: arrays that are passed to the landscape.
      trace_every: number of steps between two records, counted from `first_step`; 0 records nothing. Static.
      parallel_proposals: number of proposals evaluated at once, see `speculate`; static.

    Returns:
      The chain after the last step, and a `Trace` with `num_steps // trace_every` entries, or None if
      `trace_every` is 0.

    Raises:
      InputError: `first_step` is not a multiple of `BLOCK_STEPS`, `state` is not an `AnnealState`, or an argument
        is refused as by `anneal`.
    """
    check_key(rng_key)
    check_landscape(landscape)
    counts = _checked_counts(num_steps, trace_every, parallel_proposals)
    schedule, data = as_schedule(schedule), as_data(data)
    if not isinstance(state, AnnealState):
        raise InputError(f"state must be an AnnealState, as init and run return it, not {described(state)}")
    if isinstance(first_step, Tracer):
        first = first_step
    else:
        first = np.int32(whole("first_step", first_step, most=MOST_STEPS))
        if first % BLOCK_STEPS:
            raise InputError(f"first_step must be a multiple of {BLOCK_STEPS}, not {first}")
    return call_compiled(partial(_run, landscape, counts), rng_key, state, schedule, first, data)


def _run(landscape, counts, rng_key, state, schedule, first_step, data):
    num_steps, trace_every, parallel_proposals = counts
    first_step = first_step.astype(jnp.int32)
    entries = num_steps // trace_every if trace_every else 0
    steps, energies = jnp.zeros(entries, jnp.int32), jnp.zeros(entries, state.best_energy.dtype)
    trace = Trace(steps, jnp.zeros(entries, jnp.float32), energies, energies, steps)

    def one_step(with_keys, state, inputs):
        noise, log_u, temperature = inputs
        state = step(landscape, state, with_keys(noise), log_u, temperature, data)
        return state, (state.walk.energy, state.best_energy, state.num_accepted) if trace_every else ()

    def one_block(block_steps, carry, start):
        state, trace = carry
        start = jnp.asarray(start, jnp.int32)
        refresh = (start % landscape.refresh_steps == 0) & (start > 0)
        walk = jax.lax.cond(refresh, lambda w: landscape.refresh(w, data), lambda w: w, state.walk)
        state = _with_best(landscape, state, walk)
        noise_key, accept_key = jax.random.split(jax.random.fold_in(rng_key, start // BLOCK_STEPS))
        keys = jax.vmap(partial(jax.random.fold_in, noise_key))(jnp.arange(block_steps))
        log_u = -jax.random.exponential(accept_key, (BLOCK_STEPS,), jnp.float32)[:block_steps]
        steps = start + jnp.arange(block_steps, dtype=jnp.int32)
        temperature = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(steps)
        noise = jax.vmap(landscape.draw)(keys)
        if parallel_proposals > 1:
            state, records = speculate(landscape, state, noise, log_u, temperature, parallel_proposals, data)
        else:
            noise, with_keys = _keys_as_data(noise)
            state, records = jax.lax.scan(partial(one_step, with_keys), state, (noise, log_u, temperature))
        if trace_every:
            done = steps - first_step + 1
            entry = jnp.where(done % trace_every == 0, done // trace_every - 1, entries)
            values = Trace(steps + 1, temperature, *records)
            trace = jax.tree.map(lambda kept, new: kept.at[entry].set(new, mode="drop"), trace, values)
        return (state, trace), None

    temperature = temperature_at(schedule, 0)
    carry = match_varying((state, trace), rng_key, state.best_energy, temperature)
    landscape = drawn_ahead(landscape, rng_key, carry[0].walk, temperature)
    blocks, rest = divmod(num_steps, BLOCK_STEPS)
    starts = first_step + BLOCK_STEPS * jnp.arange(blocks, dtype=jnp.int32)
    carry = scan_carry(partial(one_block, BLOCK_STEPS), carry, starts)
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
    resume: AnnealResult | None = None,
    keep_state: bool = False,
) -> AnnealResult:
    """Anneals one position on a landscape. Works inside `jit`, `vmap`, `scan` and `shard_map`.

    A call from outside of these is compiled once, and later calls with the same functions and shapes reuse the
    program, also with another key, position, data or temperature. So all functions must be pure: as under
    `jax.jit`, an object that a function reads and that is changed in place is not noticed. Reverse-mode
    differentiation does not work, because a proposal is evaluated inside a loop.

    Args:
      rng_key: a key, `[]`; the only source of randomness. For many chains, use `vmap` over keys.
      landscape: a landscape from `from_energy` or `masked_mlp`, or your own.
      position: initial position, any pytree that the landscape accepts. Its energy must be finite: a chain that
        starts at NaN never leaves it. Unused with `resume`.
      schedule: `step -> temperature`, such as a schedule of optax, or a number for a constant temperature. It must
        return a temperature of at least 0: a step with a NaN or negative temperature is greedy, and is counted in
        `num_not_finite`.
      num_steps: number of proposals, at least 0; static under `jit`.
      data: arrays that are passed to the energy as arguments. The energy need not capture them.
      trace_every: number of steps between two records; 0 records nothing. Static under `jit`.
      parallel_proposals: number of proposals evaluated at once against the same state, at least 1; static under
        `jit`. The first accepted proposal is made. The chain stays the same. It is faster on hardware with many
        parallel units, if few proposals are accepted.
      resume: the result of a chain to continue, or None to begin one. With the same key, landscape, schedule and
        data, the chain is bit for bit the same as in one call. The number of steps already made must be a multiple
        of `BLOCK_STEPS`; under `jit` this is not checked.
      keep_state: whether the result holds the state of the landscape; static under `jit`. `resume` needs it if the
        landscape keeps more than a position and its energy, as `masked_mlp` does.

    Returns:
      An `AnnealResult`, with the best position and the final one. With `resume`, its counts and its best position
      are those of the whole chain, and its trace has the new steps.

    Raises:
      InputError: `num_steps` or `trace_every` is not a whole number of at least 0, `parallel_proposals` is not a
        whole number of at least 1, `rng_key` is not one key, the landscape is not a `Landscape`, a leaf of the
        position is not an array, `data` is not a tuple, the schedule is neither a number nor a function of the
        step, or it does not return a number, or a plain number below 0, or `resume` cannot be continued.

    An energy with thirteen minima, and the position of the lowest one:

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import anneal, from_energy, geometric_schedule
    >>> energy = lambda x: 0.1 * (x - 7) ** 2 + 2 * jnp.cos(2 * x)
    >>> move = lambda rng_key, x: x + jax.random.normal(rng_key)
    >>> landscape, schedule = from_energy(energy, move), geometric_schedule(5.0, 0.01, 2000)
    >>> result = anneal(jax.random.key(0), landscape, 0.0, schedule, 2000)
    >>> round(float(result.best), 1)
    7.8
    """
    check_key(rng_key)
    check_landscape(landscape)
    counts = _checked_counts(num_steps, trace_every, parallel_proposals)
    schedule, data = as_schedule(schedule), as_data(data)
    if resume is None:
        position = as_position(position)
    else:
        _check_resumed(resume, num_steps)
        position = None
    options = landscape, counts, bool(keep_state)
    return call_compiled(partial(_anneal, *options), rng_key, position, resume, schedule, data)


def _anneal(landscape, counts, keep_state, rng_key, position, resume, schedule, data):
    if resume is None:
        first_step, state = np.int32(0), _initial(landscape, position, data)
    else:
        # All chains of a `vmap` have made the same number of steps.
        first_step, state = batch_bound(jnp.asarray(resume.num_steps)), _resumed(landscape, data, resume)
    state, trace = _run(landscape, counts, rng_key, state, schedule, first_step, data)
    return AnnealResult(
        state.best,
        state.best_energy,
        state.walk.position,
        state.walk.energy,
        state.num_accepted,
        trace,
        state.num_not_finite,
        first_step + jnp.int32(counts[0]),
        state if keep_state else None,
    )


def _check_resumed(result: AnnealResult, num_steps: int) -> None:
    if not isinstance(result, AnnealResult):
        raise InputError(f"resume must be an AnnealResult, as anneal returns it, not {described(result)}")
    if isinstance(result.num_steps, Tracer):
        return
    made = whole("the number of steps of resume", result.num_steps)
    if made % BLOCK_STEPS:
        near = BLOCK_STEPS * max(round(made / BLOCK_STEPS), 1)
        raise InputError(
            f"resume needs a result after a multiple of {BLOCK_STEPS} steps, not {made}: "
            f"make it with num_steps={near}"
        )
    whole("num_steps", num_steps, most=MOST_STEPS - made, otherwise=f", after the {made} of resume")


def _resumed(landscape: Landscape, data: tuple, result: AnnealResult) -> AnnealState:
    """The state of a chain after its last step."""
    if result.state is not None:
        return result.state
    walk = jax.eval_shape(lambda position: landscape.init(position, data), result.final)
    if {*getattr(walk, "_fields", ())} != {"position", "energy"}:
        raise InputError(
            "resume needs the state of this landscape: make the result with keep_state=True, or use "
            "sa_jax.chain.init and run"
        )
    walk = walk._replace(position=result.final, energy=result.final_energy)
    counts = result.num_accepted, jnp.asarray(result.num_not_finite)
    return AnnealState(walk, result.best, result.best_energy, *counts)


def _keys_as_data(noise: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The noise with arrays of numbers for its keys, and the function that makes these numbers keys again.

    With `jax_debug_key_reuse`, JAX takes a key for used that was transposed, as under `vmap`, or that is read in a
    loop.
    """
    leaves, structure = jax.tree.flatten(noise)
    kinds = [
        jax.random.key_impl(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else None
        for leaf in leaves
    ]

    def with_keys(noise):
        leaves = zip(jax.tree.leaves(noise), kinds, strict=True)
        return structure.unflatten(
            leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind) for leaf, kind in leaves
        )

    data = (leaf if kind is None else jax.random.key_data(leaf) for leaf, kind in zip(leaves, kinds, strict=True))
    return structure.unflatten(data), with_keys


def _checked_counts(num_steps: int, trace_every: int, parallel_proposals: int) -> tuple[int, int, int]:
    return (
        whole("num_steps", num_steps, most=MOST_STEPS),
        whole("trace_every", trace_every),
        whole("parallel_proposals", parallel_proposals, 1),
    )


def scan_carry(step: Callable[[Any, Any], tuple[Any, None]], carry: PyTree, inputs: jax.Array) -> PyTree:
    """Returns the carry of a `lax.scan` without outputs. Without inputs it is not traced.

    With `jax_disable_jit`, JAX refuses a scan of no steps.

    Args:
      step: `(carry, input) -> (carry, None)`.
      carry: any pytree of arrays.
      inputs: the inputs, leading axis `[steps]`.
    """
    return jax.lax.scan(step, carry, inputs)[0] if inputs.shape[0] else carry


def match_varying(carry: PyTree, rng_key: jax.Array, *values: Scalar) -> PyTree:
    """Makes a carry vary over the mesh inside `shard_map` wherever the key or the values vary.

    `lax.scan` requires that a carry varies over the same mesh axes before the first step and after it. An initial
    position that all chains share does not vary. `jnp.where` between two equal leaves makes it vary, in every
    version of JAX. XLA compiles the choice away.

    Args:
      carry: any pytree of arrays.
      rng_key: a key, `[]`.
      *values: float arrays or numbers, of any shape.

    Returns:
      A carry with the same values.
    """
    # Not random bits: with `jax_debug_key_reuse`, JAX refuses a key that is used twice.
    varying = jnp.any(jax.random.key_data(rng_key) == 0)
    for value in values:
        varying |= jnp.isnan(value).any()
    return jax.tree.map(lambda leaf: jnp.where(varying, leaf, leaf), carry)
