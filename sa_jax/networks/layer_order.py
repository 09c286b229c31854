"""The order in which the layers of a multilayer perceptron follow each other, from names and shapes alone."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sa_jax.types import InputError

# Orders of layers that are looked at before giving up.
MOST_TRIED = 10_000


def orders(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """The orders in which layers can follow each other, at most two of them.

    Layers whose names differ first in a number follow each other by it, such as `Dense_2` and `Dense_10`, or
    `dense` and `dense_1`, if there is any such order.

    Args:
      shapes: `(inputs, outputs)` by name.

    Raises:
      InputError: so many orders that it cannot be told.

    >>> orders({"body": (4, 3), "head": (3, 2), "entry": (5, 4)})
    [['entry', 'body', 'head']]
    >>> orders({"body": (3, 3), "neck": (3, 3)})
    [['body', 'neck'], ['neck', 'body']]
    >>> orders({"fc2": (3, 3), "fc1": (3, 3)})
    [['fc1', 'fc2']]
    """
    return orders_by_number(shapes) or orders_by_shape(shapes)


def orders_by_number(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Of the orders that `orders` knows, those in which the numbers in the names rise; as for `orders`."""
    keys = {name: natural(name) for name in shapes}
    before = {name: {other for other in shapes if _is_before(keys[other], keys[name])} for name in shapes}
    return _orders(shapes, before)


def orders_by_shape(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """The orders in which layers can follow each other, at most two, whatever their names; as for `orders`."""
    return _orders(shapes, {})


def _orders(shapes: Mapping[str, tuple[int, int]], before: Mapping[str, set[str]]) -> list[list[str]]:
    """At most two orders; `before` names, for a layer, those that must have come."""
    found: list[list[str]] = []
    begun: list[list[str]] = [[]]
    for _ in range(MOST_TRIED):
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
    """Says what keeps layers from being a network: `shapes` are `(inputs, outputs)` by name."""
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
    """A key that sorts names by the values of the numbers in them; a name without one comes first."""
    # At most so many digits: Python refuses to read thousands.
    return [int(part) if part.isdecimal() else part for part in re.split(r"_?(\d{1,18})", name)]


def _is_before(key: list[Any], other: list[Any]) -> bool:
    for part, another in zip(key, other, strict=False):
        if part != another:
            return isinstance(part, int) and part < another
    return len(key) < len(other)


def first_misfit(names: Sequence[str], shapes: Mapping[str, tuple[int, int]]) -> tuple[str, str] | None:
    """The first two layers in an order of which one does not give what the next takes; None where all fit."""
    pairs = itertools.pairwise(names)
    return next(((one, other) for one, other in pairs if shapes[one][1] != shapes[other][0]), None)
