"""Names the leaves of parameter trees."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax

from sa_jax.types import InputError, PyTree


def leaf_name(path: Sequence[Any]) -> str:
    """Returns the name of a leaf, its keys joined by '/', from its path in `tree_flatten_with_path` of JAX."""
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    # An NNX variable is a node in the tree, with the array as its value.
    is_variable = len(path) > 1 and getattr(path[-1], "name", None) == "value"
    return "/".join(keys[:-1] if is_variable else keys)


def leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of any pytree by their names, see `leaf_name`.

    >>> leaves_by_name({"fc": {"kernel": 1}, "layers": [2]})
    {'fc/kernel': 1, 'layers/0': 2}
    """
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def flat_params(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of nested mappings by their keys, joined by '/', in the order of the mappings.

    Raises:
      InputError: the tree is not a mapping.
    """
    if not isinstance(tree, Mapping):
        raise InputError(f"parameters must be nested mappings of arrays, not {type(tree).__name__}")
    leaves: Any = flax.traverse_util.flatten_dict(dict(tree))
    return {"/".join(map(str, path)): leaf for path, leaf in leaves.items()}


def no_such_leaf(name: Any, leaves: Mapping[str, Any]) -> str:
    """Returns a message that parameters have no leaf with this name, and which name may be meant."""
    close = difflib.get_close_matches(str(name), leaves, 1)
    there = f"did you mean {close[0]}?" if close else f"the params hold {', '.join(list(leaves)[:8])}"
    return f"no array {name!r} in the params; {there}"
