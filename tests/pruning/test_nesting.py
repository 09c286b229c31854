"""Masks nested like params: mappings without what is not masked, other nodes with None in its place."""

import jax
import numpy as np
from flax import nnx
from flax.core import FrozenDict

from sa_jax.networks.masks import apply_masks
from sa_jax.networks.trees import leaves_by_name
from sa_jax.pruning.nesting import nest_masks


def test_mappings_hold_only_what_leads_to_a_mask():
    params = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "b": {"scale": np.ones(2)}, 3: {4: np.ones(2)}}
    mask = np.ones((2, 3), bool)
    assert nest_masks(params, {}) == {}
    assert nest_masks(params, {"a/kernel": mask}) == {"a": {"kernel": mask}}
    assert nest_masks(FrozenDict(params), {"a/kernel": mask}) == {"a": {"kernel": mask}}
    assert list(nest_masks(params, {"3/4": np.ones(2, bool)})[3]) == [4]  # the keys themselves, not their text


def test_names_with_slashes_stay_one_key():
    assert nest_masks({"a/kernel": 1.0, "a/bias": 2.0}, {"a/kernel": True}) == {"a/kernel": True}


def test_other_nodes_keep_their_structure():
    params = [{"kernel": 1.0, "bias": 2.0}, (3.0, 4.0)]
    assert nest_masks(params, {"1/0": True}) == [{"kernel": None, "bias": None}, (True, None)]
    assert nest_masks({"layers": params, "head": 5.0}, {"layers/1/0": True}) == {
        "layers": [{"kernel": None, "bias": None}, (True, None)]
    }


def test_variables_of_nnx_are_replaced_by_their_masks():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])

    _, state = nnx.split(Net(nnx.Rngs(0)))
    mask = np.arange(6).reshape(2, 3) < 2
    nested = nest_masks(state, {"layers/0/kernel": mask})
    (name,) = leaves_by_name(nested)
    assert name == "layers/0/kernel" and leaves_by_name(nested)[name] is mask
    pruned = leaves_by_name(apply_masks(state, nested))
    np.testing.assert_array_equal(pruned[name] != 0, mask)
    assert all(leaf.all() for other, leaf in pruned.items() if other == "layers/1/kernel")
    assert jax.tree.structure(apply_masks(state, nested)) == jax.tree.structure(state)
