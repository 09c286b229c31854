"""Arrays as JAX takes them: of numbers, in the byte order of this machine."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.checks import native
from sa_jax.networks.trees import leaf_name
from sa_jax.types import InputError, PyTree

Function = TypeVar("Function", bound=Callable)


def jit(**options: Any) -> Callable[[Function], Function]:
    """Compiles a function as `jax.jit` does, for arguments in any byte order.

    Args:
      **options: options of `jax.jit`.
    """

    def decorate(function: Any) -> Any:
        compiled = jax.jit(function, **options)

        @functools.wraps(function)
        def call(*args, **kwargs):
            args, kwargs = jax.tree.map(native, (args, kwargs))
            return compiled(*args, **kwargs)

        return call

    return decorate


def as_numbers(name: str, values: Any) -> Any:
    """Returns values as an array that JAX takes: its own as they are, all others as a NumPy array.

    Args:
      name: name of the values, for the message.
      values: an array of any library, or nested lists.

    Raises:
      InputError: they are not an array, or not of numbers.

    >>> as_numbers("inputs", [[1, 2], [3]])
    Traceback (most recent call last):
    sa_jax.types.InputError: inputs must be one array, but its rows have different lengths
    """
    if not isinstance(values, jax.Array):
        try:
            values = native(np.asarray(values))
        except ValueError:
            raise InputError(f"{name} must be one array, but its rows have different lengths") from None
    if not _is_numeric(values):
        raise InputError(f"{name} must be numbers, not {values.dtype}")
    return values


def as_arrays(name: str, tree: PyTree) -> PyTree:
    """Returns a tree with its NumPy arrays as `native`, after checking that its leaves are arrays or numbers.

    Args:
      name: name of the tree, for the message.
      tree: any pytree.

    Raises:
      InputError: a leaf is something else, such as a text or a function.

    >>> as_arrays("params", {"kernel": 1.0, "activation": "relu"})
    Traceback (most recent call last):
    sa_jax.types.InputError: 'activation' in params must be an array of numbers, not str: leave it out
    """

    def convert(path, leaf):
        if not (_is_numeric(leaf) or isinstance(leaf, bool | int | float | complex)):
            where = f"{leaf_name(path)!r} in {name}" if path else name
            what = f"of {leaf.dtype}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
            raise InputError(f"{where} must be an array of numbers, not {what}: leave it out")
        return native(leaf)

    return jax.tree_util.tree_map_with_path(convert, tree)


def _is_numeric(array: Any) -> bool:
    if isinstance(array, np.ndarray | np.generic):
        return any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.number, jnp.bool_))
    return isinstance(array, jax.Array)
