"""Checks of settings and arguments. Each message is one line that says which values are allowed."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from jax.core import Tracer

from sa_jax.types import InputError

# Number of characters of a value that a message shows.
LONGEST = 200


def whole(name: str, value: Any, least: int = 0, most: int | None = None, otherwise: str = "") -> int:
    """Returns a value as an int, after checking that it is a whole number in range.

    Args:
      name: name of the setting or argument, as the user writes it.
      value: an int, or another object with `__index__`, such as a NumPy integer.
      least: the lowest value that is allowed.
      most: the highest value that is allowed; None for no bound.
      otherwise: text on what else is allowed, such as ", or None to choose it".

    Raises:
      InputError: the value is not a whole number, or out of range.

    >>> whole("num_steps", 3)
    3
    >>> whole("SEED", -1, most=10)
    Traceback (most recent call last):
    sa_jax.types.InputError: SEED must be a whole number from 0 to 10, not -1
    """
    index = _index(value)
    if index is None or index < least or (most is not None and index > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {bounds}{otherwise}, not {_shown(value)}")
    return index


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    otherwise: str = "",
) -> float:
    """Returns a value as a number, after checking that it is finite, in range and fits into a float.

    Args:
      name: name of the setting or argument, as the user writes it.
      value: an int, a float, a NumPy number, or an array of one number with no axes.
      above: a bound that the value must exceed.
      least: the lowest value that is allowed.
      below: a bound that the value must stay below.
      most: the highest value that is allowed.
      otherwise: text on what else is allowed, such as ", or None to calibrate it".

    Raises:
      InputError: the value is not a number, not finite, or out of range.

    >>> number("density", 0.5, above=0, most=1)
    0.5
    >>> number("density", 1.5, above=0, most=1)
    Traceback (most recent call last):
    sa_jax.types.InputError: density must be a finite number above 0 and at most 1, not 1.5
    """
    given: Any = value
    if not isinstance(value, Tracer) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    # Comparisons are exact for whole numbers of any size, and False for NaN.
    fits = isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    bounds = []
    for bound, text, holds in (
        (above, "above", operator.gt),
        (least, "of at least", operator.ge),
        (below, "below", operator.lt),
        (most, "at most", operator.le),
    ):
        if bound is not None:
            bounds.append(f"{text} {bound:g}")
            fits = fits and bool(holds(value, bound))
    if fits and isinstance(value, int | float):
        return value
    range_ = " " + " and ".join(bounds) if bounds else ""
    raise InputError(f"{name} must be a finite number{range_}{otherwise}, not {_shown(given)}")


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Returns a value, after checking that it is one of the allowed words.

    Args:
      name: name of the setting or argument, as the user writes it.
      value: the word to check.
      allowed: all words that are allowed.

    Raises:
      InputError: the value is not one of the allowed words.

    >>> choice("move", "jump", ("uniform", "informed"))
    Traceback (most recent call last):
    sa_jax.types.InputError: move must be one of uniform, informed, not 'jump'
    """
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {_shown(value)}")
    return value


def native(array: Any) -> Any:
    """Returns a NumPy array in the byte order of this machine, and any other value as it is.

    JAX refuses an array in the other byte order. Where it has seen one of the same shape before, it misreads it.

    >>> native(np.array([1, 2], ">i4")).dtype.isnative
    True
    """
    foreign = isinstance(array, np.ndarray) and not array.dtype.isnative
    return array.astype(array.dtype.newbyteorder("=")) if foreign else array


def _index(value: Any) -> int | None:
    """The value as an int; None where it is not a whole number, or traced and so not known."""
    if isinstance(value, bool | Tracer) or getattr(value, "ndim", 0) or str(getattr(value, "dtype", "")) == "bool":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _shown(value: Any) -> str:
    """The value as a message shows it, on one line."""
    if isinstance(value, Tracer):
        return "a traced value: pass it as a static argument"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write ints of thousands of digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
