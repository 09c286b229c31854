"""Infers the order of the layers of a multilayer perceptron from their names and shapes."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sa_jax.types import InputError

# Partial orders that are tried before giving up.
MAX_TRIED = 10_000


def orders(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Finds the orders in which layers can follow each other, at most two.

    Layers whose names first differ in a number are ordered by it if their shapes allow, such as `Dense_2` before
    `Dense_10`, or `dense` before `dense_1`.

    Args:
      shapes: `(inputs, outputs)` of each layer, by name.

    Raises:
      InputError: there are too many possible orders to try.

    >>> orders({"body": (4, 3), "head": (3, 2), "entry": (5, 4)})
    [['entry', 'body', 'head']]
    >>> orders({"body": (3, 3), "neck": (3, 3)})
    [['body', 'neck'], ['neck', 'body']]
    >>> orders({"fc2": (3, 3), "fc1": (3, 3)})
    [['fc1', 'fc2']]
    """
    return orders_by_number(shapes) or orders_by_shape(shapes)


def orders_by_number(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Finds orders in which the numbers in the names rise, at most two; arguments and errors as for `orders`."""
    keys = {name: natural(name) for name in shapes}
    before = {name: {other for other in shapes if _is_before(keys[other], keys[name])} for name in shapes}
    return _orders(shapes, before)


def orders_by_shape(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Finds orders by shapes alone, at most two; arguments and errors as for `orders`."""
    return _orders(shapes, {})


def _orders(shapes: Mapping[str, tuple[int, int]], before: Mapping[str, set[str]]) -> list[list[str]]:
    """Finds at most two orders; `before` has, for a layer, the layers that must come before it."""
    found: list[list[str]] = []
    begun: list[list[str]] = [[]]
    for _ in range(MAX_TRIED):
        if not begun or len(found) == 2:
            return found
        order = begun.pop()
        if len(order) == len(shapes):
            found.append(order)
            continue
        used = set(order)
        follows = [
            name
            for name, (inputs, _) in shapes.items()
            if name not in used
            and before.get(name, used) <= used
            and (not order or shapes[order[-1]][1] == inputs)
        ]
        begun += [[*order, name] for name in sorted(follows, key=natural, reverse=True)]
    raise InputError("the layers could follow each other in too many orders to try: number them in network order")


def misfit(
    shapes: Mapping[str, tuple[int, int]], bias_lengths: Mapping[str, int], order: Sequence[str] | None = None
) -> str:
    """Returns a message on why layers do not form a network; `shapes` are `(inputs, outputs)` by name."""
    for name, length in bias_lengths.items():
        if length != shapes[name][1]:
            return f"layer {name!r}: bias {[length]} does not fit kernel {list(shapes[name])}"
    names = sorted(shapes, key=natural) if order is None else list(order)
    wrong = first_misfit(names, shapes)
    assert wrong is not None
    before, name = wrong
    return (
        f"layer {name!r} takes {shapes[name][0]} inputs, but the layer before it has {shapes[before][1]} outputs; "
        f"layers in the order {'of their names' if order is None else 'given'}: {', '.join(names)}"
    )


def natural(name: str) -> list[Any]:
    """Returns a sort key that orders names by the numbers in them; a name without a number comes first."""
    # At most 18 digits at once: Python refuses to read thousands.
    return [int(part) if part.isdecimal() else part for part in re.split(r"_?(\d{1,18})", name)]


def _is_before(key: list[Any], other: list[Any]) -> bool:
    for part, another in zip(key, other, strict=False):
        if part != another:
            return isinstance(part, int) and part < another
    return len(key) < len(other)


def first_misfit(names: Sequence[str], shapes: Mapping[str, tuple[int, int]]) -> tuple[str, str] | None:
    """Returns the first two neighbours of which the outputs and inputs differ in number; None if all fit."""
    pairs = itertools.pairwise(names)
    return next(((one, other) for one, other in pairs if shapes[one][1] != shapes[other][0]), None)
