"""A linear layer and its Gram matrix: which are taken, damping, and errors by the outputs themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.pruning.gram import check_layer, damped, layer_error, relative_error
from tests.conftest import refusal
from tests.landscapes.layers import layer

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("given", "kept"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("int32", "float32")]
)
def test_a_gram_matrix_of_half_precision_keeps_its_type(given, kept):
    weight, gram = check_layer(np.ones((2, 3)), jnp.eye(3, dtype=given))
    assert weight.dtype == jnp.float32 and gram.dtype == kept


def test_an_array_that_is_no_gram_matrix_is_refused():
    with refusal("gram must be symmetric"):
        check_layer(np.ones((2, 3)), np.triu(np.ones((3, 3))))


def test_damping_adds_a_share_of_the_mean_to_the_diagonal():
    _, gram = layer(2, 5)
    gram = np.asarray(gram)
    np.testing.assert_allclose(damped(gram, 0.1), gram + 0.1 * np.diag(gram).mean() * np.eye(5), rtol=1e-6)


def test_errors_are_those_of_the_outputs():
    x, weight = RANDOM.normal(size=(40, 5)), RANDOM.normal(size=(3, 5))
    pruned = np.where(RANDOM.random((3, 5)) < 0.5, weight, 0)
    lost, whole = (((x @ values.T) ** 2).sum(0) for values in (pruned - weight, weight))
    np.testing.assert_allclose(relative_error(weight, x.T @ x, pruned), lost / whole, rtol=1e-4)
    np.testing.assert_allclose(layer_error(weight, x.T @ x, pruned), lost.sum() / whole.sum(), rtol=1e-4)
