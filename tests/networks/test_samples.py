"""Inputs, labels and weights that do not fit are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import as_samples, check_samples, check_values
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
        (X, Y.astype(float), "labels must be whole numbers, not float64: convert them, with y.astype(int)"),
        (X, Y == 1, "labels must be whole numbers, not bool"),
        (X, Y.astype(str), "labels must be numbers, not <U21"),
        (Y, X, "labels must be whole numbers, not float32"),  # swapped
        ([[1.0], [2.0, 3.0]], Y, "inputs must be one array, but its rows have different lengths"),
        (None, Y, "inputs must be numbers, not object"),
        (X, Y + 2**32, "labels run from 4294967296 to 4294967297"),  # not to 1, as in int32
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


def test_samples_of_any_kind_are_returned_as_jax_reads_them():
    frozen = X.copy()
    frozen.flags.writeable = False
    for x in (X.astype(">f4"), X.astype(">f8"), frozen, np.asfortranarray(X), X > 0, X.tolist(), X.astype(">i2")):
        for y in (Y.astype(">i4"), Y.astype("u8"), Y.astype(">u8"), Y.astype("i1"), Y.tolist(), Y[::-1][::-1]):
            found = check_samples(NETWORK, x, y)
            for array, expected in zip(found, (X, Y), strict=True):
                assert array.dtype.isnative
                np.testing.assert_array_equal(jnp.asarray(array), expected)
    assert as_samples(jnp.asarray(X) + 1j, Y)[0].dtype == jnp.complex64  # a model may take these
