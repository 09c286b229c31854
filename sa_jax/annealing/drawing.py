"""Draws the random numbers of many proposals at once, for moves that draw them from a key in each step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from sa_jax.types import Landscape, PyTree

# Larger values are computed in each step: those of a whole block of steps would take much memory.
MOST_BYTES = 4_096
# Calls that are replaced by their equations, by their names in the versions of JAX.
CALLS = ("jit", "pjit")
# What a value depends on. What depends on constants alone is computed wherever it is needed.
CONSTANT, NOISE, STATE = range(3)


@dataclass
class _Equation:
    """An equation of a proposal: a function of some values, which have numbers, and where it is evaluated."""

    call: Callable[..., list[Any]]
    inputs: list[int]
    outputs: list[int]
    in_draw: bool
    in_step: bool


class _Proposal:
    """A traced proposal. Calls that depend on noise are replaced by their equations.

    Attributes:
      depends: what each value depends on, by number.
      constants: the constants, by number.
      equations: all equations in order.
      inputs: the numbers of the inputs: the key, and the leaves of state and temperature.
      results: the numbers of the results.
      drawn: the numbers of the values of noise that a step needs.
    """

    def __init__(self, traced: ClosedJaxpr):
        self.depends: list[int] = []
        self.constants: dict[int, Any] = {}
        self.equations: list[_Equation] = []
        self.inputs = [self._value(STATE if place else NOISE) for place, _ in enumerate(traced.in_avals)]
        self.results = self._add(traced, self.inputs)
        used = {number for one in self.equations if one.in_step for number in one.inputs} | {*self.results}
        self.drawn = sorted(number for number in used if self.depends[number] == NOISE)

    def evaluated(self, known: dict[int, Any], in_draw: bool) -> dict[int, Any]:
        """Returns the known values and all that are computed while drawing, or in a step."""
        known = known | self.constants
        for one in self.equations:
            if one.in_draw if in_draw else one.in_step:
                results = one.call(*(known[number] for number in one.inputs))
                known |= zip(one.outputs, results, strict=True)
        return known

    def _value(self, depends: int) -> int:
        self.depends.append(depends)
        return len(self.depends) - 1

    def _constant(self, array: Any) -> int:
        number = self._value(CONSTANT)
        self.constants[number] = array
        return number

    def _add(self, closed: ClosedJaxpr, inputs: Iterable[int]) -> list[int]:
        """Adds all equations, with inputs of these numbers; returns the numbers of the outputs."""
        jaxpr = closed.jaxpr
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        numbers |= zip(jaxpr.constvars, map(self._constant, closed.consts), strict=True)

        def numbered(atom):
            return self._constant(atom.val) if isinstance(atom, Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            entering = [numbers[one] for one in equation.invars if not isinstance(one, Literal)]
            noisy = any(self.depends[number] == NOISE for number in entering)
            if noisy and equation.primitive.name in CALLS:
                leaving = self._add(equation.params["jaxpr"], map(numbered, equation.invars))
            else:
                depends = self._dependence(equation, entering)
                leaving = [self._value(depends) for _ in equation.outvars]
                call = _as_function(jaxpr, equation)
                self.equations.append(_Equation(call, entering, leaving, depends != STATE, depends != NOISE))
            numbers |= zip(equation.outvars, leaving, strict=True)
        return [numbered(atom) for atom in jaxpr.outvars]

    def _dependence(self, equation: JaxprEqn, inputs: list[int]) -> int:
        """What the outputs depend on; STATE where the equation must be evaluated in the step."""
        depends = max((self.depends[number] for number in inputs), default=CONSTANT)
        if equation.effects:
            return STATE
        if depends == NOISE and not all(_is_exact(one.aval) for one in [*equation.invars, *equation.outvars]):
            return STATE
        return STATE if any(_num_bytes(one.aval) > MOST_BYTES for one in equation.outvars) else depends


def drawn_ahead(landscape: Landscape, rng_key: jax.Array, walk: PyTree, temperature: jax.Array) -> Landscape:
    """Returns a landscape that makes the same moves, and draws the random bits of its proposals in `draw`.

    In a landscape of `from_energy`, `draw` hands on a key, and random bits then take most of the time of a cheap
    move. The annealer draws for a block of steps at once, which is many times faster. So the proposal is traced,
    and its equations that depend on the key alone move from `propose` to `draw`. The rest stays: what depends on
    the state, control flow that the state decides, and large values. Floats stay too, because their last bit may
    depend on how many are computed at once. The random bits are the same. A float may still differ in its last bit
    where XLA now fuses it with other operations.

    A landscape that draws by itself stays as it is. So do all with keys other than threefry, which draw other
    numbers under `vmap`.

    Args:
      landscape: the landscape to anneal on.
      rng_key: a key, `[]`, as `draw` gets it. Of this key and the other two the values play no part.
      walk: a state of the landscape.
      temperature: float32 `[]`.
    """
    # Without jit a move may branch on values, which cannot be traced.
    config: Any = jax.config  # its type stubs lack most names
    if config.jax_disable_jit or not _hands_on_a_threefry_key(landscape, rng_key):
        return landscape
    traced, shapes = jax.make_jaxpr(landscape.propose, return_shape=True)(rng_key, walk, temperature)
    proposal = _Proposal(traced)
    key, *of_state = proposal.inputs

    def draw(rng_key):
        known = proposal.evaluated({key: rng_key}, in_draw=True)
        return [known[number] for number in proposal.drawn]

    def propose(noise, walk, temperature):
        known = dict(zip(proposal.drawn, noise, strict=True))
        known |= zip(of_state, jax.tree.leaves((walk, temperature)), strict=True)
        known = proposal.evaluated(known, in_draw=False)
        return jax.tree.unflatten(jax.tree.structure(shapes), [known[number] for number in proposal.results])

    return landscape._replace(draw=draw, propose=propose)


def _hands_on_a_threefry_key(landscape: Landscape, rng_key: jax.Array) -> bool:
    noise = jax.eval_shape(landscape.draw, rng_key)
    if not isinstance(noise, jax.ShapeDtypeStruct) or noise.dtype != rng_key.dtype or noise.shape != rng_key.shape:
        return False
    return str(jax.random.key_impl(rng_key)) == "threefry2x32"


def _as_function(jaxpr: Jaxpr, equation: JaxprEqn) -> Callable[..., list[Any]]:
    """A function of an equation's inputs, without the literals among them."""
    inputs = [one for one in equation.invars if not isinstance(one, Literal)]
    alone = jaxpr.replace(constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation])
    return jaxpr_as_fun(ClosedJaxpr(alone, []))


def _is_exact(aval: Any) -> bool:
    return not jnp.issubdtype(aval.dtype, jnp.inexact)


def _num_bytes(aval: Any) -> int:
    # Keys have no size in bytes.
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)
