"""Masks nested like the parameters that they belong to."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sa_jax.networks.trees import leaf_name
from sa_jax.types import PyTree


def nest_masks(params: PyTree, masks: Mapping[str, jax.Array]) -> PyTree:
    """Nests masks as the parameters are nested.

    Args:
      params: any pytree of arrays.
      masks: by the names of leaves of the params, such as 'Dense_0/kernel'; bool, each of its leaf's shape.

    Returns:
      Mappings keep only the keys that lead to a mask. Any other node keeps its structure, with None in place of
      each leaf without a mask.

    >>> nest_masks({"fc": {"kernel": 1.0, "bias": 2.0}}, {"fc/kernel": True})
    {'fc': {'kernel': True}}
    >>> nest_masks([{"kernel": 1.0}, (2.0, 3.0)], {"0/kernel": True})
    [{'kernel': True}, (None, None)]
    """
    return _nested((), params, masks)


def _nested(path: Sequence[Any], node: PyTree, masks: Mapping[str, jax.Array]) -> PyTree:
    name = leaf_name(path)
    if path and name in masks:  # a leaf, or an NNX variable, which is a node with the array in it
        return masks[name]
    if not isinstance(node, Mapping):
        return _filled(path, node, masks)
    children = {key: _nested((*path, jax.tree_util.DictKey(key)), child, masks) for key, child in node.items()}
    return {key: child for key, child in children.items() if jax.tree.leaves(child)}


def _filled(path: Sequence[Any], node: PyTree, masks: Mapping[str, jax.Array]) -> PyTree:
    def mask_of(rest: Sequence[Any], leaf: Any) -> jax.Array | None:
        del leaf
        return masks.get(leaf_name((*path, *rest)))

    return jax.tree_util.tree_map_with_path(mask_of, node)
