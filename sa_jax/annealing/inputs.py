"""Checks of the annealer's arguments: keys, landscapes, positions, data, functions. Each message is one line."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.checks import native
from sa_jax.types import InputError, Landscape, PyTree

# Steps are counted in int32.
MOST_STEPS = 2**31 - 1


def check_key(rng_key: Any) -> None:
    """Checks that a value is one random key: typed, or the uint32 array of `jax.random.PRNGKey`.

    Raises:
      InputError: the value is not a key, or an array of several keys.

    >>> check_key(0)
    Traceback (most recent call last):
    sa_jax.types.InputError: rng_key must be one key, such as jax.random.key(0), not int
    """
    if isinstance(rng_key, jax.Array) and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        is_key = rng_key.ndim == 0
    else:
        is_key = isinstance(rng_key, jax.Array | np.ndarray) and rng_key.dtype == np.uint32 and rng_key.ndim == 1
    if not is_key:
        raise InputError(f"rng_key must be one key, such as jax.random.key(0), not {described(rng_key)}")


def check_landscape(landscape: Any) -> None:
    """Checks that a value is a landscape.

    Raises:
      InputError: the value is not a `Landscape`.
    """
    if not isinstance(landscape, Landscape):
        raise InputError(
            f"landscape must be a Landscape, such as from_energy(energy_fn, move_fn), not {described(landscape)}"
        )


def check_takes(name: str, function: Any, arguments: str, count: int) -> None:
    """Checks that a function can be called with `count` arguments.

    Args:
      name: name of the function, as the user writes it.
      function: the value to check.
      arguments: names of the arguments that the function is called with, in brackets.
      count: number of these arguments.

    Raises:
      InputError: the value is not callable, or it takes another number of arguments.

    >>> check_takes("move_fn", lambda position: -position, "(rng_key, position)", 2)
    Traceback (most recent call last):
    sa_jax.types.InputError: move_fn is called with 2 arguments, (rng_key, position), but takes (position)
    """
    if not callable(function):
        raise InputError(f"{name} must be a function of {arguments}, not {described(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions that are not written in Python do not tell
        return
    try:
        signature.bind(*range(count))
    except TypeError:
        taken = f"({', '.join(signature.parameters)})"
        many = f"{count} argument{'s' * (count > 1)}"
        raise InputError(f"{name} is called with {many}, {arguments}, but takes {taken}") from None


def as_position(position: PyTree) -> PyTree:
    """Converts the leaves of a position to arrays that are not weakly typed, as the carry of a scan must be.

    Raises:
      InputError: there are no leaves, or a leaf is not an array or a number.

    >>> as_position({"x": 1.0, "name": "start"})
    Traceback (most recent call last):
    sa_jax.types.InputError: position['name'] must be an array or a number, not str: leave it out of the position
    """
    if not jax.tree.leaves(position):
        raise InputError(f"position must be an array or a pytree of arrays, not {described(position)}")

    def convert(path, leaf):
        array = _as_jax(leaf)
        if array is None:
            raise InputError(
                f"position{jax.tree_util.keystr(path)} must be an array or a number, not {described(leaf)}: "
                "leave it out of the position"
            )
        return jax.lax.convert_element_type(array, array.dtype) if getattr(array, "weak_type", False) else array

    return jax.tree_util.tree_map_with_path(convert, position)


def as_data(data: Any) -> tuple:
    """Converts the NumPy arrays of `data` to JAX arrays: indexing a NumPy array with a traced index fails.

    Raises:
      InputError: `data` is not a tuple, or an array does not hold numbers.

    >>> as_data(np.ones(3))
    Traceback (most recent call last):
    sa_jax.types.InputError: data must be a tuple, such as data=(x,), not float64[3]
    """
    if not isinstance(data, tuple | list):
        raise InputError(f"data must be a tuple, such as data=(x,), not {described(data)}")

    def convert(path, leaf):
        array = _as_jax(leaf) if isinstance(leaf, np.ndarray) else leaf
        if array is None:
            raise InputError(
                f"data{jax.tree_util.keystr(path)} must be an array of numbers, not {described(leaf)}"
            )
        return array

    return jax.tree_util.tree_map_with_path(convert, tuple(data) if isinstance(data, list) else data)


def as_scalar(what: str, value: Any) -> jax.Array:
    """Converts what a function returned to an array `[]`, after checking that it is one real number.

    Args:
      what: words for the value.
      value: the value to check.

    Raises:
      InputError: the value is not a number, is complex, or has axes.

    >>> as_scalar("the value of schedule", jnp.ones(2))
    Traceback (most recent call last):
    sa_jax.types.InputError: the value of schedule must be a real scalar, not float32[2]
    """
    array = None if isinstance(value, tuple | list | dict) else _as_jax(value)
    if array is None or array.shape != () or not _is_real(array.dtype):
        raise InputError(f"{what} must be a real scalar, not {described(value)}")
    return array


def described(value: Any) -> str:
    """Returns how a message names a value: an array by dtype and shape, all else by its type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "None" if value is None else type(value).__name__


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _as_jax(leaf: Any) -> jax.Array | None:
    """The leaf as an array; None where JAX has no such array."""
    try:
        return None if leaf is None or isinstance(leaf, str | bytes) else jnp.asarray(native(leaf))
    except (TypeError, ValueError, OverflowError):
        return None
