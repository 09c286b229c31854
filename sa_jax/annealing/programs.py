"""Compiles a call from outside of `jit` once, and keeps the program for later calls of the same function."""

import weakref
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from sa_jax.types import PyTree

# Number of programs that are kept. The one that was not used for the longest time is dropped first.
MOST_PROGRAMS = 32
# Values that are the same if they print the same.
PLAIN = int, float, complex, str, bytes, type(None), np.generic, np.dtype
ARRAYS = jax.Array, np.ndarray, np.number, np.bool_


class _Program(NamedTuple):
    """A compiled function of arrays.

    Attributes:
      key: what the function and its arguments are; see `_Identity`.
      call: the function, of the captured arrays and of the arrays of a call.
      captured: functions that return the captured arrays.
      structure: the structure of the results.
      references: functions that return the objects that the key names, by their place in memory. They are weak
        where that is possible, so that the program keeps few objects alive. It is forgotten when one of them dies.
    """

    key: Hashable
    call: Callable[..., list[jax.Array]]
    captured: list[Callable[[], Any]]
    structure: Any
    references: dict[int, Callable[[], Any]]


_programs: dict[Hashable, _Program] = {}


def call_compiled(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Calls a pure function of pytrees as under `jax.jit`. Inside `jit`, `vmap` and the like, it is only called.

    The compiled program is kept for later calls with the same function, shapes, dtypes and settings of JAX. This
    differs from `jax.jit` in three ways:

    - The function is known by its code and by the values of the variables that its code names. The same holds for
      each function among these values, if it is captured or of the same module. So a function that is defined
      again counts as the same one, and a function counts as another one if one of its variables has another value.
      Of objects other than tuples, lists and dicts, a change in place is not noticed.
    - Arrays that the function captures become arguments of the program. It would contain a copy of a constant.
    - A program is forgotten with the objects that the function captures, and after `MOST_PROGRAMS` newer ones.

    Args:
      function: a pure function of the arguments.
      *arguments: pytrees. Leaves that are not arrays are static.

    Returns:
      What the function returns.
    """
    leaves, structure = jax.tree.flatten(arguments)
    config: Any = jax.config  # its type stubs lack most names
    if config.jax_disable_jit or any(isinstance(leaf, Tracer) for leaf in leaves):
        return function(*arguments)
    arrays = [leaf for leaf in leaves if isinstance(leaf, ARRAYS)]
    static = tuple(None if isinstance(leaf, ARRAYS) else leaf for leaf in leaves)

    def of_arrays(*arrays):
        given = iter(arrays)
        merged = [next(given) if isinstance(leaf, ARRAYS) else leaf for leaf in leaves]
        return function(*structure.unflatten(merged))

    def identified():
        identity = _Identity((function, static))
        settings = jax.eval_shape(_settings).value
        return (*identity.words, structure, *map(jax.typeof, arrays), settings), identity.objects

    try:
        program = _programs.pop(identified()[0], None)
    except TypeError:  # the pytrees have parts that cannot be compared
        return function(*arguments)
    program = program or _compiled(of_arrays, arrays, identified)
    captured = [get() for get in program.captured]
    # A function that captures a traced array is another one in the next trace.
    if not any(isinstance(array, Tracer) for array in captured):
        _programs[program.key] = program
        for oldest in list(_programs)[:-MOST_PROGRAMS]:
            _programs.pop(oldest, None)
    return program.structure.unflatten(program.call(*captured, *arrays))


def _compiled(
    function: Callable[..., PyTree],
    arrays: list[Any],
    identified: Callable[[], tuple[Hashable, dict[int, Any]]],
) -> _Program:
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arrays)
    # After tracing, because a function may count how often it is traced.
    key, objects = identified()
    jaxpr = traced.jaxpr
    lifted = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    references = {place: _reference(value, key) for place, value in objects.items()}
    captured = [references.get(id(array)) or partial(_itself, array) for array in traced.consts]
    call = jax.jit(jaxpr_as_fun(ClosedJaxpr(lifted, [])))
    return _Program(key, call, captured, jax.tree.structure(shapes), references)


def _reference(value: Any, key: Hashable) -> Callable[[], Any]:
    """A weak reference that forgets the program when the value dies; a strong one if there are no weak ones."""
    pop = _programs.pop
    try:
        return weakref.ref(value, lambda _: pop(key, None))
    except TypeError:
        return partial(_itself, value)


def _itself(value: Any) -> Any:
    return value


@jax.tree_util.register_pytree_node_class
class _Stamp:
    """A pytree without leaves, which differs from all others."""

    def __init__(self, value: object):
        self.value = value

    def tree_flatten(self) -> tuple[tuple, object]:
        return (), self.value

    @classmethod
    def tree_unflatten(cls, value: object, leaves: tuple) -> "_Stamp":
        del leaves
        return cls(value)


@jax.jit
def _settings() -> _Stamp:
    """Traced again whenever a setting of JAX has changed that traced programs depend on; so it stands for them."""
    return _Stamp(object())


class _Identity:
    """What a function and its variables are, so that two with the same words are traced to the same program.

    Attributes:
      words: hashable values that tell one function from another one.
      objects: the objects that the words name by their place in memory, by this place.
    """

    def __init__(self, value: Any):
        self.words: list[Hashable] = []
        self.objects: dict[int, Any] = {}
        self._seen: dict[int, int] = {}
        self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.words.append((type(value), repr(value)))
        elif id(value) in self._seen:  # as in a function that calls itself
            self.words.append(self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            parts = _parts(value)
            if parts is None:
                self._add_place(value)
                return
            self.words += type(value), len(parts)
            for part in parts:
                self._add(part)
            if isinstance(value, FunctionType):
                self._add_globals(value)

    def _add_place(self, value: Any) -> None:
        self.words.append(id(value))
        self.objects[id(value)] = value

    def _add_globals(self, function: FunctionType) -> None:
        variables = function.__globals__
        for name in _names(function.__code__):
            value = variables.get(name)
            if isinstance(value, FunctionType) and value.__globals__ is not variables:
                self._add_place(value)
            else:
                self._add(value)


def _parts(value: Any) -> list[Any] | None:
    """The parts of which a value consists; None if it is known by its place in memory."""
    match value:
        case FunctionType():
            cells = value.__closure__ or ()
            return [value.__code__, value.__defaults__, value.__kwdefaults__, *map(_content, cells)]
        case MethodType():
            return [value.__func__, value.__self__]
        case partial():
            return [value.func, value.args, value.keywords]
        case dict():
            return [part for item in value.items() for part in item]
        case tuple() | list():
            return list(value)
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _names(code: CodeType) -> Iterator[str]:
    """The names of the global variables in a function's code, and of some attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
