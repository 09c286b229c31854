"""The Fisher matrix, its inverse, and the masks and weights from the quadratic model, by brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import scores, second_order
from sa_jax.networks import masks
from tests.baselines.conftest import sample_gradients
from tests.conftest import refusal


@pytest.mark.slow
def test_fisher_inverse_is_that_of_the_dense_matrix(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    fisher = second_order.empirical_fisher(network, x, y, damping=1e-2)
    dense = np.linalg.inv(gradients.T @ gradients / len(x) + 1e-2 * np.eye(network.total))
    vector = np.arange(network.total) / 10.0
    np.testing.assert_allclose(second_order.inverse_diagonal(fisher), np.diag(dense), rtol=1e-4)
    np.testing.assert_allclose(second_order.inverse_product(fisher, vector), dense @ vector, rtol=1e-3, atol=1e-3)

    weights = np.asarray(masks.flatten(network.kernels), np.float64)
    mask, moved = second_order.woodfisher(network, fisher, 20)
    np.testing.assert_array_equal(mask, masks.by_score(jnp.asarray(weights**2 / np.diag(dense)), 20))
    gone = np.where(mask, 0, weights / np.diag(dense))
    np.testing.assert_allclose(masks.flatten(moved.kernels), weights - dense @ gone, rtol=1e-3, atol=1e-3)


def quadratic(gradients, weights, mask, damping):
    v = np.where(mask, 0, weights)
    return ((gradients @ v) ** 2).sum() / (2 * len(gradients)) + damping / 2 * (v**2).sum()


def test_joint_update_minimises_the_quadratic_model(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    fisher = second_order.empirical_fisher(network, x, y, damping=1e-2)
    mask = np.asarray(scores.magnitude_global(network, 20))
    moved = second_order.obs_update(network, fisher, jnp.asarray(mask))
    old, new = (np.asarray(masks.flatten(n.kernels), np.float64) for n in (network, moved))
    matrix = gradients.T @ gradients / len(x) + 1e-2 * np.eye(network.total)
    change = np.where(mask, new, 0) - old
    # At the minimum no kept weight has a slope.
    np.testing.assert_allclose((matrix @ change)[mask], 0, atol=1e-4)
    assert change @ matrix @ change < old[~mask] @ matrix[~mask][:, ~mask] @ old[~mask]


def test_swap_search_ends_where_no_single_swap_lowers_the_quadratic_model(small):
    network, x, y = small
    gradients = sample_gradients(network, x, y).astype(np.float64)
    weights = np.asarray(masks.flatten(network.kernels), np.float64)
    fisher = second_order.empirical_fisher(network, x, y)
    start = scores.magnitude_global(network, 20)
    mask = np.array(second_order.cbs_mask(network, fisher, 20, start))
    found = quadratic(gradients, weights, mask, fisher.damping)
    assert mask.sum() == 20 and found < quadratic(gradients, weights, np.asarray(start), fisher.damping)
    for leave, enter in itertools.product(np.flatnonzero(mask), np.flatnonzero(~mask)):
        other = mask.copy()
        other[leave], other[enter] = False, True
        assert quadratic(gradients, weights, other, fisher.damping) >= found * (1 - 1e-4)


def test_a_damping_that_is_not_above_0_is_refused(small):
    for damping in (0.0, -1e-5, np.nan):
        with refusal("damping must be a finite number above 0, not"):
            second_order.empirical_fisher(*small, damping=damping)
