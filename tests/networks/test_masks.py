"""Masks: how many stay, which, and what two of them share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import masks
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("density", "total", "kept"),
    [(1.0, 7, 7), (1, 7, 7), (0.5, 32_360, 16_180), (0.1, 32_360, 3_236), (0.02, 32_360, 647), (0.26, 10, 3)],
)
def test_number_kept_is_the_rounded_share(density, total, kept):
    assert masks.num_kept(density, total) == kept


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, np.nan, np.inf, True, "0.5", None, 2])
def test_senseless_densities_are_refused(density):
    with refusal(f"density must be a finite number above 0 and at most 1, not {density!r}"):
        masks.num_kept(density, 10)


def test_a_density_that_keeps_nothing_is_refused():
    with refusal("density 0.04 keeps 0 of 10 branches; the least that keeps one is 0.1"):
        masks.num_kept(0.04, 10)


@pytest.mark.parametrize("kept", [0, 4, 9])
def test_random_masks_keep_exactly_as_many_and_every_branch_alike(kept):
    drawn = jax.vmap(lambda key: masks.random(key, 9, kept))(jax.random.split(jax.random.key(0), 4_000))
    assert drawn.dtype == bool and (drawn.sum(1) == kept).all()
    np.testing.assert_allclose(drawn.mean(0), kept / 9, atol=0.04)  # five standard errors


def test_highest_scores_are_kept_and_ties_go_to_the_lower_index():
    scores = jnp.array([2.0, 5.0, 2.0, -1.0, 2.0, jnp.nan])
    kept = [np.flatnonzero(masks.by_score(scores, kept)).tolist() for kept in (0, 2, 3, 5)]
    assert kept == [[], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4]]  # and NaN last


@pytest.mark.slow
@pytest.mark.parametrize("values", ["floats", "ties", "extremes"])
def test_kept_scores_are_those_of_a_stable_sort(values):
    rng = np.random.default_rng(0)
    for _ in range(30):
        total = int(rng.integers(1, 60))
        kept = int(rng.integers(0, total + 1))
        drawn = {
            "floats": rng.standard_normal(total),
            "ties": rng.choice([-1.0, -0.0, 0.0, 2.0], total),
            "extremes": rng.choice([-np.inf, np.inf, 1e-37, -1e-37, 3e38, -3e38, np.nan], total),
        }[values].astype(np.float32)
        order = np.argsort(np.where(np.isnan(drawn), np.inf, -drawn), kind="stable")
        expected = np.isin(np.arange(total), order[:kept])
        np.testing.assert_array_equal(jax.jit(masks.by_score)(drawn, kept), expected)


def test_flat_order_is_layer_by_layer_and_row_by_row():
    parts = masks.unflatten(jnp.arange(10), [(2, 3), (2, 2)])
    assert [part.tolist() for part in parts] == [[[0, 1, 2], [3, 4, 5]], [[6, 7], [8, 9]]]
    np.testing.assert_array_equal(masks.flatten(parts), jnp.arange(10))


@pytest.mark.parametrize("sizes", [(4, 3, 3, 2), (3, 4), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("density", [0.15, 0.35, 0.6])
def test_effective_branches_are_those_on_a_path(sizes, density):
    """Every path from an input to an output is walked."""
    shapes = list(itertools.pairwise(sizes))
    total = sum(inputs * outputs for inputs, outputs in shapes)
    find = jax.jit(lambda mask: masks.effective(mask, shapes))
    lost = 0
    for key in jax.random.split(jax.random.key(0), 20):
        mask = masks.random(key, total, masks.num_kept(density, total))
        kernels = [np.asarray(kernel) for kernel in masks.unflatten(mask, shapes)]
        expected = [np.zeros_like(kernel) for kernel in kernels]
        for units in itertools.product(*map(range, sizes)):
            steps = list(itertools.pairwise(units))
            if all(kernel[step] for kernel, step in zip(kernels, steps, strict=True)):
                for kernel, step in zip(expected, steps, strict=True):
                    kernel[step] = True
        found = np.asarray(find(mask))
        np.testing.assert_array_equal(found, masks.flatten(expected))
        lost += int(mask.sum()) - int(found.sum())
    assert (lost > 0) == (len(sizes) > 2)


def test_overlap_of_random_masks_is_what_chance_gives():
    drawn = np.stack([masks.random(key, 4_000, 800) for key in jax.random.split(jax.random.key(0), 6)])
    found = masks.overlap(drawn)
    assert found.jaccard_of_random == pytest.approx(0.2 / 1.8)
    assert found.jaccard_mean == pytest.approx(found.jaccard_of_random, abs=0.01)
    assert found.hamming_mean == pytest.approx(0.8, abs=0.02)  # a fifth of each is in the other
    assert found.jaccard_min < found.jaccard_mean < found.jaccard_max
    assert found.hamming_min < found.hamming_mean < found.hamming_max
    same = masks.overlap(np.stack([drawn[0]] * 3))
    assert (same.jaccard_min, same.hamming_max) == (1, 0)


def test_scores_in_the_other_byte_order_give_the_same_mask():
    scores = np.array([1.0, 300.0, 2.0, 5.0], np.float32)
    for given in (scores, scores.astype(">f4"), scores.astype(">f8"), scores.astype(">i4")):
        assert masks.by_score(given, 2).tolist() == [False, True, False, True]


def test_masks_are_applied_to_arrays_in_the_other_byte_order_and_beside_leaves_of_any_kind():
    params = {"fc": {"kernel": np.array([[1.0, 300.0]], ">f4"), "bias": np.ones(2, ">f4"), "activation": "relu"}}
    found = masks.apply_masks(params, {"fc": {"kernel": np.array([[False, True]])}})
    assert found["fc"]["kernel"].tolist() == [[0.0, 300.0]] and found["fc"]["kernel"].dtype == jnp.float32
    assert found["fc"]["bias"] is params["fc"]["bias"] and found["fc"]["activation"] == "relu"


def test_masks_and_params_in_the_wrong_order_are_named():
    params = {"fc": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}}
    found = {"fc": {"kernel": jnp.array([[False, True]])}}
    with refusal("params holds masks, and masks does not: call apply_masks(params, masks)"):
        masks.apply_masks(found, params)
    with refusal("the mask of 'fc/kernel' must be boolean, not float32"):
        masks.apply_masks(params, {"fc": {"kernel": jnp.ones((1, 2))}})
    with refusal("'name' in params must be an array of numbers, not str"):
        masks.apply_masks({"name": "fc"}, {"name": np.bool_(True)})
