"""Arrays in any byte order and of any library, and what is not an array of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import arrays
from tests.conftest import refusal


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">u8"])
def test_the_other_byte_order_is_read_right_whatever_was_compiled_before(dtype):
    values = np.arange(5).astype(dtype)

    @arrays.jit(static_argnames="by")
    def scaled(pair, by):
        return pair["x"] * by

    for given in (values.astype(dtype.replace(">", "<")), values):  # JAX misreads the second
        np.testing.assert_array_equal(scaled({"x": given}, by=2), [0, 2, 4, 6, 8])
        np.testing.assert_array_equal(jnp.abs(arrays.native(given)), np.arange(5))
    assert scaled.__name__ == "scaled"


def test_arrays_that_jax_reads_stay_the_same():
    for same in (np.ones(3), jnp.ones(3), np.float32(1), 1.0, None, "text"):
        assert arrays.native(same) is same
    assert arrays.as_numbers("x", ones := jnp.ones(3)) is ones
    assert arrays.as_numbers("x", [[1, 2]]).tolist() == [[1, 2]]
    jax.jit(lambda x: arrays.as_numbers("x", x))(1.0)


def test_leaves_of_a_tree_become_native_and_all_else_is_refused_by_name():
    tree = {"a": np.ones(2, ">f4"), "b": [jnp.ones(1), 2, True, None, np.bool_(True)], "key": jax.random.key(0)}
    found = arrays.as_arrays("params", tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree) and found["a"].dtype == np.float32
    assert found["b"][0] is tree["b"][0]
    for leaf, what in (
        ("relu", "not str"),
        (jax.nn.tanh, "must be an array of numbers, not"),
        (np.array(["a"]), "not of <U1"),
        (np.array([None]), "not of object"),
    ):
        with refusal("'layer/activation' in params must be an array of numbers", what, "leave it out"):
            arrays.as_arrays("params", {"layer": {"activation": leaf}})


def test_values_that_are_not_one_array_of_numbers_are_refused():
    with refusal("weight must be one array, but its rows have different lengths"):
        arrays.as_numbers("weight", [[1.0], [2.0, 3.0]])
    for value, dtype in ((None, "object"), ("a", "<U1"), ({"kernel": 1}, "object")):
        with refusal(f"weight must be numbers, not {dtype}"):
            arrays.as_numbers("weight", value)
