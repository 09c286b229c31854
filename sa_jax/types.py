"""Tuples and protocols that all packages share, and the error for bad input."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.export
import numpy as np

PyTree = Any
Tuple = TypeVar("Tuple", bound=tuple)
Scalar = jax.Array | np.floating | float
Masks = Mapping[str, jax.Array]
"""Masks by layer name: one bool array `[inputs, outputs]` per kernel, True where the branch is kept."""

Position = TypeVar("Position")
State = TypeVar("State")
Noise = TypeVar("Noise")
Move = TypeVar("Move")
Pending = TypeVar("Pending")
StateIn = TypeVar("StateIn", contravariant=True)
StateOut = TypeVar("StateOut", covariant=True)
NoiseIn = TypeVar("NoiseIn", contravariant=True)
NoiseOut = TypeVar("NoiseOut", covariant=True)
MoveIn = TypeVar("MoveIn", contravariant=True)
MoveOut = TypeVar("MoveOut", covariant=True)
PendingIn = TypeVar("PendingIn", contravariant=True)
PendingOut = TypeVar("PendingOut", covariant=True)


class InputError(ValueError):
    """Bad input from a user. Its message is one line that names the fix."""


def exportable(named_tuple: type[Tuple]) -> type[Tuple]:
    """Lets `jax.export` save functions that take or return this NamedTuple; used as a decorator."""
    with suppress(ValueError):  # the name is taken, because a notebook loads the module again
        jax.export.register_namedtuple_serialization(
            named_tuple, serialized_name=f"{named_tuple.__module__}.{named_tuple.__qualname__}"
        )
    return named_tuple


class InitFn(Protocol[StateOut]):
    """Evaluates a position in full: `(position, data) -> state`."""

    def __call__(self, position: PyTree, data: tuple, /) -> StateOut: ...


class DrawFn(Protocol[NoiseOut]):
    """Draws all random numbers of one proposal: `(rng_key) -> noise`."""

    def __call__(self, rng_key: jax.Array, /) -> NoiseOut: ...


class ProposeFn(Protocol[NoiseIn, StateIn, MoveOut]):
    """Proposes a move: `(noise, state, temperature) -> (move, log_q_ratio)`."""

    def __call__(self, noise: NoiseIn, state: StateIn, temperature: jax.Array, /) -> tuple[MoveOut, jax.Array]: ...


class DeltaFn(Protocol[StateIn, MoveIn, PendingOut]):
    """Evaluates a move: `(state, move, data) -> (energy_change, pending)`."""

    def __call__(self, state: StateIn, move: MoveIn, data: tuple, /) -> tuple[jax.Array, PendingOut]: ...


class CommitFn(Protocol[State, MoveIn, PendingIn]):
    """Makes a move if it is accepted: `(state, move, pending, accepted) -> state`."""

    def __call__(self, state: State, move: MoveIn, pending: PendingIn, accepted: jax.Array, /) -> State: ...


class RefreshFn(Protocol[State]):
    """Computes a state again from its position: `(state, data) -> state`."""

    def __call__(self, state: State, data: tuple, /) -> State: ...


class RememberFn(Protocol[State]):
    """Keeps the best position: `(best, state, improved) -> (best, state)`."""

    def __call__(self, best: PyTree, state: State, improved: jax.Array, /) -> tuple[PyTree, State]: ...


class SettleFn(Protocol[State, MoveIn]):
    """Evaluates a move, accepts or rejects it: see `Landscape`; returns `(state, accepted, energy_change)`."""

    def __call__(
        self,
        state: State,
        move: MoveIn,
        log_q_ratio: jax.Array,
        log_u: jax.Array,
        temperature: jax.Array,
        data: tuple,
        /,
    ) -> tuple[State, jax.Array, jax.Array]: ...


class Landscape(NamedTuple, Generic[State, Noise, Move, Pending]):
    """A problem to anneal, as pure functions over a state, in the manner of `optax.GradientTransformation`.

    A state is any pytree with the fields `position` and `energy` (float32 scalar, lower is better).
    `draw` is a function of its own and takes no state. So the annealer can draw the random numbers of a whole
    block of steps at once, which costs a fiftieth of drawing them step by step.

    Attributes:
      init: `(position, data) -> state`, a full evaluation.
      draw: `(rng_key) -> noise`, all the random numbers of one proposal.
      propose: `(noise, state, temperature) -> (move, log_q_ratio)`, with
        `log_q_ratio = log q(current | proposed) - log q(proposed | current)`. The ratio is 0 for a symmetric move.
        It is -inf if the proposal is to stay in place; such a proposal counts as rejected.
      delta: `(state, move, data) -> (energy_change, pending)`; `pending` holds the values that `commit` can reuse.
      commit: `(state, move, pending, accepted) -> state`; returns the state unchanged if not accepted.
      refresh: `(state, data) -> state`, the state computed again from its position. A refresh removes rounding
        errors that have added up, and it takes new data into account.
      remember: `(best, state, improved) -> (best, state)`; the new `best` is the state's position if improved. Use
        it for positions that are expensive to copy. With None the position is copied.
      refresh_steps: number of steps between two calls of `refresh`, a multiple of
        `sa_jax.annealing.chain.BLOCK_STEPS`.
      settle: `(state, move, log_q_ratio, log_u, temperature, data) -> (state, accepted, energy_change)`, for
        landscapes that do the whole of a step at once: `delta`, the rule of `sa_jax.annealing.chain.accept`, and
        `commit`. With None the step calls these three.
    """

    init: InitFn[State]
    draw: DrawFn[Noise]
    propose: ProposeFn[Noise, State, Move]
    delta: DeltaFn[State, Move, Pending]
    commit: CommitFn[State, Move, Pending]
    refresh: RefreshFn[State]
    remember: RememberFn[State] | None = None
    # A full evaluation costs as much as some hundred proposals. The rounding error that it removes is below 1e-6
    # even after twice as many steps.
    refresh_steps: int = 10_000
    settle: SettleFn[State, Move] | None = None


class Schedule(Protocol):
    """Maps a step (int32 scalar, from 0) to a temperature (float32 scalar, in units of the energy)."""

    def __call__(self, step: jax.Array, /) -> Scalar: ...


@exportable
class AnnealState(NamedTuple):
    """One chain between two steps.

    Attributes:
      walk: the landscape's state, with the fields `position` and `energy`.
      best: the position of the lowest energy so far.
      best_energy: the energy of `best`.
      num_accepted: number of accepted proposals so far.
      num_not_finite: number of proposals so far whose energy change was NaN or infinite, or whose temperature was
        NaN or negative. Those of such an energy change are rejected, except for a change from an infinite energy
        to a finite one. At such a temperature the rule is greedy, as at temperature 0.
    """

    walk: Any
    best: PyTree
    best_energy: jax.Array  # float32 []
    num_accepted: jax.Array  # int32 []
    num_not_finite: jax.Array  # int32 []


@exportable
class Trace(NamedTuple):
    """The values recorded every `trace_every` steps; entry `i` is taken after `(i + 1) * trace_every` steps.

    Attributes:
      step: number of steps made.
      temperature: temperature of the last step made.
      energy: current energy.
      best_energy: lowest energy so far.
      num_accepted: number of accepted proposals so far.
    """

    step: jax.Array  # int32 [entries]
    temperature: jax.Array  # float32 [entries]
    energy: jax.Array  # float32 [entries]
    best_energy: jax.Array  # float32 [entries]
    num_accepted: jax.Array  # int32 [entries]


@exportable
class AnnealResult(NamedTuple):
    """The result of `anneal`; under `vmap` every field gains the mapped axis in front.

    Attributes:
      best: the position of the lowest energy found, a pytree like the initial position.
      best_energy: the energy of `best`.
      final: the position after the last step.
      final_energy: the energy of `final`.
      num_accepted: number of accepted proposals.
      trace: a `Trace`, or None if `trace_every` is 0.
      num_not_finite: see `AnnealState`.
      num_steps: number of steps made, those of a resumed chain included.
      state: the chain after the last step, or None without `keep_state`.
    """

    best: PyTree
    best_energy: jax.Array  # float32 []
    final: PyTree
    final_energy: jax.Array  # float32 []
    num_accepted: jax.Array  # int32 []
    trace: Trace | None
    num_not_finite: jax.Array | int = 0  # int32 []
    num_steps: jax.Array | int = 0  # int32 []
    state: AnnealState | None = None
