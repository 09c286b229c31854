"""Inputs, labels and weights that do not fit are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import check_samples, check_values
from tests.conftest import refusal

NETWORK = Network((jnp.ones((3, 4)), jnp.ones((4, 2))), (jnp.ones(4), None))
X, Y = np.ones((5, 3), np.float32), np.array([0, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        (X[:, :2], Y, "inputs must have the shape [samples, 3], not [5, 2]"),
        (X[:0], Y[:0], "inputs must have the shape [samples, 3], not [0, 3]"),
        (X[0], Y[:1], "inputs must have the shape [samples, 3], not [3]"),
        (X, Y[1:], "labels must have the shape [5], one per input, not [4]"),
        (X, Y.astype(float), "labels must be whole numbers, not float64"),
        (X + 1j, Y, "inputs must be numbers, not complex"),
        (X * np.nan, Y, "inputs hold NaN or infinite values"),
        (X.astype(np.float64) * 1e300, Y, "inputs hold NaN or infinite values"),  # in float32
        (X, Y + 1, "labels run from 1 to 2, but the network has 2 classes: 0..1"),
        (X, Y - 1, "labels run from -1 to 0, but the network has 2 classes: 0..1"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x, y, problem):
    check_samples(NETWORK, X, Y)
    with refusal(problem):
        check_samples(NETWORK, x, y)


def test_weights_that_are_not_finite_are_refused():
    kernels = (NETWORK.kernels[0].at[0, 0].set(jnp.inf), NETWORK.kernels[1])
    with refusal("the network's weights hold NaN or infinite values"):
        check_samples(NETWORK._replace(kernels=kernels), X, Y)


def test_values_are_not_looked_at_within_jit():
    jax.jit(lambda x: check_values(NETWORK, x, Y, 2))(X * np.nan)
