"""Names of the leaves of parameter trees."""

import jax.numpy as jnp
from flax import nnx

from sa_jax.networks import trees
from tests.conftest import refusal


def test_leaves_are_named_by_their_paths():
    tree = {"params": {"Dense_0": {"kernel": 1}}, "layers": [2, (3, {"b": 4})]}
    assert trees.leaves_by_name(tree) == {
        "params/Dense_0/kernel": 1,
        "layers/0": 2,
        "layers/1/0": 3,
        "layers/1/1/b": 4,
    }


def test_variables_of_nnx_have_the_names_of_their_modules():
    _, state = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert sorted(trees.leaves_by_name(state)) == ["bias", "kernel"]


def test_mappings_are_flattened_in_their_order():
    assert list(trees.flat_params({"b": {"kernel": jnp.ones(2)}, "a": jnp.ones(1)})) == ["b/kernel", "a"]
    with refusal("parameters must be nested mappings of arrays, not list"):
        trees.flat_params([jnp.ones(2)])


def test_a_missing_leaf_is_named_with_the_nearest():
    leaves = dict.fromkeys(["Dense_0/kernel", "Dense_0/bias"])
    assert trees.no_such_leaf("Dense_0/kernl", leaves).endswith("did you mean Dense_0/kernel?")
    assert trees.no_such_leaf("x", leaves).endswith("the params hold Dense_0/kernel, Dense_0/bias")
