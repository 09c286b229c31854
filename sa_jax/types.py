"""The tuples and protocols that every module shares."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax

PyTree = Any
Scalar = jax.Array | float
Masks = Mapping[str, jax.Array]
"""One boolean array per kernel, `[inputs, outputs]`, True where the branch is kept, by layer name."""


class InputError(ValueError):
    """Bad input from a user. Its message is one line that names the fix."""


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a setting is a finite number, of a size that a float holds.

    >>> [is_number(value) for value in (1, 0.5, True, "1", float("nan"), 10**400)]
    [True, True, False, False, False, False]
    """
    # Comparisons are exact for whole numbers of any size, and False for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


class Landscape(NamedTuple):
    """What annealing walks on: pure functions over a state, in the manner of `optax.GradientTransformation`.

    A state is any pytree with the fields `position` and `energy` (float32 scalar, lower is better).
    Randomness is split off into `draw`, which sees no state: the annealer draws it for a whole block of
    steps at once, which costs a fiftieth of drawing it step by step.

    Attributes:
      init: `(position, data) -> state`, a full evaluation.
      draw: `(rng_key) -> noise`, all the random numbers that one proposal consumes.
      propose: `(noise, state, temperature) -> (move, log_q_ratio)`, with
        `log_q_ratio = log q(current | proposed) - log q(proposed | current)`, 0 for a symmetric move, -inf
        where the proposal is to stay, which then counts as rejected.
      delta: `(state, move, data) -> (energy_change, pending)`; `pending` is whatever `commit` can reuse.
      commit: `(state, move, pending, accepted) -> state`; returns the state unchanged where not accepted.
      refresh: `(state, data) -> state`, recomputed from the position; ends float drift, takes new data.
      remember: `(best, state, improved) -> (best, state)`, with `best` the position where improved, for positions
        that are not cheaply copied; None copies them.
      refresh_steps: `refresh` is called every so many steps, a multiple of `anneal.BLOCK_STEPS`.
    """

    init: Callable[..., Any]
    draw: Callable[..., Any]
    propose: Callable[..., Any]
    delta: Callable[..., Any]
    commit: Callable[..., Any]
    refresh: Callable[..., Any]
    remember: Callable[..., Any] | None = None
    # A full evaluation costs some hundred proposals, and the drift it ends is below 1e-6 after twice as many.
    refresh_steps: int = 10_000


class Schedule(Protocol):
    """Maps a step (int32 scalar, from 0) to a temperature (float32 scalar, in units of the energy)."""

    def __call__(self, step: jax.Array, /) -> Scalar: ...


class AnnealState(NamedTuple):
    """One chain between two steps.

    Attributes:
      walk: the landscape's state, with the fields `position` and `energy`.
      best: the position of the lowest energy so far.
      best_energy: its energy, float32 `[]`.
      num_accepted: accepted proposals so far, int32 `[]`.
      num_not_finite: proposals so far whose energy was NaN or infinite; rejected, but for a fall from infinity;
        int32 `[]`.
    """

    walk: Any
    best: PyTree
    best_energy: jax.Array
    num_accepted: jax.Array
    num_not_finite: jax.Array


class Trace(NamedTuple):
    """What is recorded every `trace_every` steps; entry `i` is taken after step `(i + 1) * trace_every`.

    Attributes:
      step: steps done, int32 `[entries]`.
      temperature: temperature of the last of them, float32 `[entries]`.
      energy: current energy, float32 `[entries]`.
      best_energy: lowest energy so far, float32 `[entries]`.
      num_accepted: accepted proposals so far, int32 `[entries]`.
    """

    step: jax.Array
    temperature: jax.Array
    energy: jax.Array
    best_energy: jax.Array
    num_accepted: jax.Array


class AnnealResult(NamedTuple):
    """What `anneal` returns; under `vmap` every field gains the mapped axis in front.

    Attributes:
      best: the position of the lowest energy met, like the initial position.
      best_energy: its energy, float32 `[]`.
      final: the position after the last step.
      final_energy: its energy, float32 `[]`.
      num_accepted: accepted proposals, int32 `[]`.
      trace: a `Trace`, or None when it was not asked for.
      num_not_finite: see `AnnealState`, int32 `[]`.
    """

    best: PyTree
    best_energy: jax.Array
    final: PyTree
    final_energy: jax.Array
    num_accepted: jax.Array
    trace: Trace | None
    num_not_finite: jax.Array | int = 0
