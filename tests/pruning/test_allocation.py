"""Budgets divided among layers: equal counts, and densities of least total error."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.pruning import allocation
from tests.conftest import refusal


def test_shares_are_the_best_on_the_grid():
    rng = np.random.default_rng(1)
    grid = np.linspace(0.05, 1, 20)
    curves = np.stack([(1 - grid) ** power * scale for power, scale in rng.uniform(1, 4, (3, 2))])
    sizes = np.array([1.0, 1.0, 1.0])
    found = allocation.shares(grid, curves, sizes, 0.4)
    assert found.mean() == pytest.approx(0.4)
    total = sum(np.interp(density, grid, curve) for density, curve in zip(found, curves, strict=True))
    least = min(
        curves[0][a] + curves[1][b] + curves[2][c]
        for a, b, c in itertools.product(range(len(grid)), repeat=3)
        if grid[a] + grid[b] + grid[c] <= 3 * 0.4 + 1e-9
    )
    assert total <= least + 1e-9


@pytest.mark.parametrize("num_kept", [1, 2, 7, 33, 60])
def test_equal_counts_keep_exactly_as_many_at_equal_density(num_kept):
    sizes = [30, 20, 7, 3]
    counts = allocation.equal_counts(sizes, num_kept)
    assert sum(counts) == num_kept
    assert all(abs(count - num_kept / 60 * size) < 1 for count, size in zip(counts, sizes, strict=True))


def test_densities_keep_the_budget_and_stay_within_the_span():
    keys = jax.random.split(jax.random.key(0), 3)
    weights = {name: jax.random.normal(key, (8, 20)) for name, key in zip("abc", keys, strict=True)}
    weights["a"] = weights["a"].at[:, 4:].mul(0.01)  # of which few weights matter
    grams = dict.fromkeys(weights, jnp.eye(20))
    found = allocation.allocate(weights, grams, 0.5)
    assert sum(found.values()) / 3 == pytest.approx(0.5, abs=1e-5)
    assert all(0.4 - 1e-6 <= density <= 0.6 + 1e-6 for density in found.values()) and found["a"] == min(
        found.values()
    )
    assert allocation.allocate(weights, grams, 0.5, span=0) == dict.fromkeys(weights, 0.5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"density": 1.5}, ["density must be a finite number above 0 and at most 1, not 1.5"]),
        ({"span": -0.1}, ["span must be a finite number of at least 0, not -0.1"]),
        ({"grams": {}}, ["no Gram matrix for fc"]),
        ({"weights": {}}, ["weights is empty: it must have the weight of at least one layer"]),
        ({"weights": {"fc": np.full((2, 4), np.nan)}}, ["weight has entries that are not finite"]),
        ({"grams": {"fc": jnp.eye(3)}}, ["gram must be [4, 4] for this weight, not [3, 3]"]),
    ],
)
def test_refuses(changes, parts):
    arguments = {"weights": {"fc": jnp.ones((2, 4))}, "grams": {"fc": jnp.eye(4)}, "density": 0.5} | changes
    with refusal(*parts):
        allocation.allocate(**arguments)


def test_layers_that_no_input_reached_lose_least():
    weights = {name: np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32) for name in ("dead", "seen")}
    grams = {"dead": np.zeros((20, 20)), "seen": np.eye(20)}
    for kind in ("<f4", ">f4"):
        given = ({name: array.astype(kind) for name, array in arrays.items()} for arrays in (weights, grams))
        found = allocation.allocate(*given, 0.5)
        assert found["dead"] < 0.45 and found["dead"] + found["seen"] == 1.0
    assert sum(allocation.allocate(weights, dict.fromkeys(grams, grams["dead"]), 0.5).values()) == 1.0
