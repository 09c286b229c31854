"""Refitted weights: the best there are, finite, and as they were where nothing can be solved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks.patterns import Unit
from sa_jax.pruning import compact, prune_linear, refit, refit_layer
from sa_jax.pruning.gram import damped, relative_error
from tests.conftest import refusal
from tests.landscapes.layers import layer


def test_refit_is_the_best_there_is_without_damping_and_stays_in_the_mask():
    weight, gram = layer(5, 16, seed=11)
    mask = prune_linear(jax.random.key(0), weight, gram, Unit(0.5))
    moved = refit(weight, gram, mask, damping=1e-6)
    assert not np.asarray(moved)[~np.asarray(mask)].any()
    # Where the fit is best the error's slope is 0 in every kept weight.
    slope = np.where(mask, (np.asarray(moved) - weight) @ gram, 0)
    assert np.abs(slope).max() < 1e-3 * np.abs(np.asarray(weight) @ gram).max()
    before, after = (relative_error(weight, gram, new) for new in (jnp.where(mask, weight, 0), moved))
    assert (after < before).all()


def test_a_layer_that_no_input_reached_keeps_its_weights_and_a_warning_says_so():
    weight, _ = layer(4, 16)
    mask = np.arange(64).reshape(4, 16) % 2 == 0
    mask[3] = False  # nothing to refit
    for damping in (0.01, 0.0, 1e30):
        found = refit_layer(weight, np.zeros((16, 16)), mask, damping)
        np.testing.assert_array_equal(found.weight, np.where(mask, weight, 0))
        assert found.solved.tolist() == [False, False, False, True]
    with pytest.warns(UserWarning, match="3 of 4 rows keep their weights.*rows 0, 1, 2; use more samples") as told:
        moved = refit(weight, np.zeros((16, 16)), mask)
    np.testing.assert_array_equal(moved, np.where(mask, weight, 0))
    assert told[0].filename == __file__ and "\n" not in str(told[0].message)
    inside = jax.jit(refit)(weight, jnp.zeros((16, 16)), mask)  # traced, so without a warning
    np.testing.assert_array_equal(inside, np.where(mask, weight, 0))


@pytest.mark.parametrize("damping", [0.01, 0.0])
def test_a_dead_input_does_not_keep_the_others_from_being_refitted(damping):
    weight, gram = layer(4, 16, seed=3)
    gram = np.asarray(gram).copy()
    gram[5], gram[:, 5] = 0, 0
    mask = np.arange(64).reshape(4, 16) % 2 == 1
    found = refit_layer(weight, gram, mask, damping)
    assert found.solved.all()
    np.testing.assert_array_equal(found.weight[:, 5], weight[:, 5])
    alive = np.arange(16) != 5
    without = refit(weight[:, alive], gram[alive][:, alive], mask[:, alive], damping * 15 / 16)
    np.testing.assert_allclose(found.weight[:, alive], without, rtol=1e-3, atol=1e-4)


def test_no_row_is_refitted_to_a_larger_error_or_to_what_is_not_finite():
    """On singular matrices of many kinds: float64 tells what float32 has made of them."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        x = random.normal(size=(random.integers(0, 16), 16)) * 10 ** random.uniform(-3, 3, 16)
        x[:, random.random(16) < 0.2] = 0
        gram, weight = x.T @ x, random.normal(size=(6, 16))
        mask = random.random((6, 16)) < 0.6
        left = np.where(mask, weight, 0)
        for damping in (0.0, 1e-9, 1e-6, 0.01):
            found = refit_layer(weight, gram, mask, damping)
            moved = np.asarray(found.weight, np.float64)
            assert np.isfinite(moved).all() and not moved[~mask].any()
            errors = [np.einsum("oi,ij,oj->o", new - weight, gram, new - weight) for new in (moved, left)]
            assert (errors[0] <= errors[1] + 1e-6 * np.einsum("oi,ij,oj->o", weight, gram, weight)).all()
            unsolved = ~np.asarray(found.solved)
            np.testing.assert_array_equal(moved[unsolved], left.astype(np.float32)[unsolved])


def test_refit_refuses_what_does_not_fit():
    weight, gram = layer(4, 8)
    mask = np.arange(32).reshape(4, 8) % 2 == 0
    for damping in (-1e-9, -0.1, np.nan, np.inf, None, "0.1"):
        for refused in (lambda d: refit(weight, gram, mask, d), lambda d: damped(gram, d)):
            with refusal("damping must be a finite number of at least 0, not"):
                refused(damping)
    for wrong in (mask[:2], mask.T, mask.astype(int), np.asarray(weight)):
        for function in (lambda mask: refit(weight, gram, mask), lambda mask: compact(weight, mask)):
            with refusal("mask must be bool[4, 8] like the weight, not"):
                function(wrong)
    with refusal("gram must be [8, 8] for this weight, not [4, 8]"):
        refit(weight, mask, gram)
    with refusal("dense_correction must be [4, 8] like the weight, not [8, 8]"):
        refit(weight, gram, mask, dense_correction=gram)
    with refusal("dense_correction has entries that are not finite"):
        refit(weight, gram, mask, dense_correction=np.full((4, 8), np.nan))
